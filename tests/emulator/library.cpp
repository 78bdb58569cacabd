// What the tests call: one operator by one kernel of the table, on copies of its tensors between guard zones.
// The CPU's kernels for AMX run here too, with emulated registers.
//
// Where `most_blocks` is not zero, tensors are too large for that: only so many of the first and of the last
// blocks of each launch run, in the tensors themselves, and the workspace starts as zeros.
#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>

#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "cuda/plan.h"
#include "emulator.h"

namespace {

using namespace cnnext;

constexpr int64_t kGuard = 1024;         // bytes on both sides
constexpr unsigned char kPoison = 0xff;  // NaN in every type

// A tensor in memory of its own. Results start poisoned; guard zones must stay so.
class Guarded {
 public:
  Guarded(void* tensor, int64_t bytes, bool is_result, int64_t shift = 0) : bytes_(bytes), shift_(shift) {
    if (emulator::most_blocks > 0) {
      const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
      mapped_ = tensor || bytes == 0 ? nullptr : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
      if (mapped_ == MAP_FAILED) throw std::runtime_error("no memory for the workspace");
      tensor_ = tensor ? tensor : mapped_;
    } else {
      tensor_ = tensor;
      memory_.assign(bytes + 2 * kGuard + 256, kPoison);
      if (tensor && !is_result) std::memcpy(data(), tensor, bytes);
    }
    emulator::add_region(data(), bytes);
  }
  ~Guarded() {
    if (mapped_) munmap(mapped_, bytes_);
  }
  Guarded(const Guarded&) = delete;
  unsigned char* data() {
    if (memory_.empty()) return static_cast<unsigned char*>(tensor_);
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory_.data()) + kGuard;
    return reinterpret_cast<unsigned char*>((start + 127) / 128 * 128 + shift_);
  }
  void* pointer() { return bytes_ > 0 ? data() : nullptr; }
  bool untouched_around() {
    if (memory_.empty()) return true;
    const unsigned char* begin = data();
    for (int64_t i = 1; i <= kGuard / 2; ++i) {
      if (begin[-i] != kPoison || begin[bytes_ + i - 1] != kPoison) return false;
    }
    return true;
  }
  void copy_back() {
    if (!memory_.empty()) std::memcpy(tensor_, data(), bytes_);
  }

 private:
  void *tensor_ = nullptr, *mapped_ = nullptr;
  int64_t bytes_, shift_;
  std::vector<unsigned char> memory_;
};

// Of a block, in bytes; where a multiprocessor has 164 KB and more, two blocks must find room.
int shared_memory_of(int arch) {
  return 1024 * (arch == 75 ? 64 : arch == 80 ? 81 : arch == 90 || arch == 100 ? 113 : 99);
}

std::string message;
const char* answer(const std::string& text) {
  message = text;
  return message.c_str();
}

template <class List, class Problem>
const auto* find(const List& list, const std::string& name, const Problem& problem, std::string* refusal) {
  for (const auto& kernel : list) {
    if (name != kernel.name) continue;
    const char* reason = kernel.refuses(problem);
    if (reason) *refusal = std::string("refused: ") + reason;
    return reason ? nullptr : &kernel;
  }
  *refusal = "there is no kernel " + name;
  return static_cast<decltype(list.begin())>(nullptr);
}

// Runs the kernel on guarded tensors; `results` are the numbers of those that it writes.
template <class Kernel, class Problem, class Buffers, class Context>
const char* run(const Kernel& kernel, const Problem& problem, const Buffers& buffers, const Context& context,
                Guarded** tensors, int count, const int* results, int result_count) {
  const int64_t bytes = kernel.workspace(problem);
  Guarded workspace(nullptr, bytes, true);
  kernel.run(problem, buffers, context, reinterpret_cast<char*>(workspace.data()));
  for (int i = 0; i < count; ++i) {
    if (!tensors[i]->untouched_around()) return answer("a write outside of tensor " + std::to_string(i));
  }
  if (!workspace.untouched_around()) return answer("a write outside of the workspace");
  for (int i = 0; i < result_count; ++i) tensors[results[i]]->copy_back();
  return nullptr;
}

// sizes: N, C, K, groups, then input, output, kernel, stride, padding, dilation of each axis. flags: dtype,
// layout, weight layout.
ConvProblem conv_problem(const int64_t* sizes, const int* flags) {
  ConvProblem p;
  p.shape.N = sizes[0], p.shape.C = sizes[1], p.shape.K = sizes[2], p.shape.groups = sizes[3];
  for (int a = 0; a < kAxes; ++a) {
    const int64_t* s = sizes + 4 + 6 * a;
    p.shape.axis[a] = {s[0], s[1], s[2], s[3], s[4], s[5]};
  }
  p.dtype = DType(flags[0]), p.layout = Layout(flags[1]), p.weight_layout = Layout(flags[2]);
  return p;
}

// An operator of convolution by one kernel of a table. Tensors with their bytes: input, weight, bias, output.
template <class Table, class Context>
const char* run_conv(const Table& table, const Context& context, const std::string& op, const char* name,
                     const ConvProblem& p, void** tensors, const int64_t* bytes, const int64_t* shifts) {
  const auto& list = op == "conv"               ? table.conv
                     : op == "conv_grad_input"  ? table.conv_grad_input
                     : op == "conv_grad_weight" ? table.conv_grad_weight
                                                : table.conv_grad_bias;
  const int result = op == "conv" ? 3 : op == "conv_grad_input" ? 0 : op == "conv_grad_weight" ? 1 : 2;
  std::string refusal;
  const auto* kernel = find(list, name, p, &refusal);
  if (!kernel) return answer(refusal);
  std::unique_ptr<Guarded> all[5];
  Guarded* given[5];
  for (int i = 0; i < 4; ++i) {
    all[i] = std::make_unique<Guarded>(tensors[i], bytes[i], i == result, shifts[i]);
    given[i] = all[i].get();
  }
  ConvBuffers buffers = {given[0]->pointer(), given[1]->pointer(), given[2]->pointer(), given[3]->pointer()};
  if (!p.keeps_weight) return run(*kernel, p, buffers, context, given, 4, &result, 1);
  // The first call packs the weight, the second finds it packed.
  std::vector<unsigned char> packed(kernel->packed(p));
  all[4] = std::make_unique<Guarded>(packed.data(), int64_t(packed.size()), true);
  given[4] = all[4].get();
  buffers.packed = given[4]->pointer();
  const char* failure = run(*kernel, p, buffers, context, given, 5, &result, 1);
  buffers.is_packed = true;
  return failure ? failure : run(*kernel, p, buffers, context, given, 5, &result, 1);
}

// The CPU's tasks one after the other, in an order and on threads that are drawn.
std::mt19937 drawn;
int last_thread;
void run_tasks(int64_t tasks, void* context, void (*body)(void*, int64_t, int64_t, int)) {
  std::vector<int64_t> order(tasks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), drawn);
  for (int64_t task : order)
    body(context, task, task + 1, std::uniform_int_distribution<int>(0, last_thread)(drawn));
}

}  // namespace

#if defined(__x86_64__)
namespace cnnext::cpu::avx512 {
const Kernels& emulated_amx();  // amx.cpp
}
#endif

// Flags beside those of conv_problem: arch, tf32. `shifts` move each tensor by so many bytes off its
// alignment. Null, or what went wrong; "refused: " and the reason if the kernel takes it not.
extern "C" const char* emulate_conv(const char* op, const char* name, const int64_t* sizes, const int* flags,
                                    void** tensors, const int64_t* bytes, const int64_t* shifts,
                                    unsigned seed, int64_t blocks_wanted, int64_t most_blocks,
                                    int64_t* conflicts) try {
  cuda::blocks_wanted = blocks_wanted;
  emulator::most_blocks = most_blocks;
  ConvProblem p = conv_problem(sizes, flags);
  p.arch = flags[3], p.tf32 = flags[4];
  p.aligned = (shifts[0] | shifts[1] | shifts[3]) % 16 == 0;
  emulator::most_shared = shared_memory_of(p.arch);
  emulator::set_seed(seed);
  emulator::clear_regions();
  emulator::bank_conflicts = 0;
  const char* failure = run_conv(cuda::kernels(), cuda::Stream(), op, name, p, tensors, bytes, shifts);
  *conflicts = emulator::bank_conflicts;
  return failure;
} catch (const std::exception& error) {
  return answer(error.what());
}

#if defined(__x86_64__)
// Flags beside those of conv_problem: threads, whether the packed weight is kept.
extern "C" const char* emulate_amx(const char* op, const char* name, const int64_t* sizes, const int* flags,
                                   void** tensors, const int64_t* bytes, unsigned seed) try {
  emulator::most_blocks = 0;
  emulator::clear_regions();
  ConvProblem p = conv_problem(sizes, flags);
  p.threads = flags[3], p.keeps_weight = flags[4];
  drawn.seed(seed);
  last_thread = p.threads - 1;
  const cpu::Parallel parallel = {p.threads, run_tasks};
  const int64_t no_shifts[4] = {};
  return run_conv(cpu::avx512::emulated_amx(), parallel, op, name, p, tensors, bytes, no_shifts);
} catch (const std::exception& error) {
  return answer(error.what());
}
#endif

// sizes: N, C, then input, output, kernel, stride, padding, dilation, adaptive of each axis. flags: dtype,
// layout, count_padding, divisor_override. Tensors with their bytes: input, output, offsets, indices.
extern "C" const char* emulate_pool(const char* op, const int64_t* sizes, const int* flags, void** tensors,
                                    const int64_t* bytes, const int64_t* shifts, unsigned seed,
                                    int64_t blocks_wanted, int64_t most_blocks) try {
  cuda::blocks_wanted = blocks_wanted;
  emulator::most_blocks = most_blocks;
  emulator::most_shared = 48 * 1024;  // what every GPU has
  PoolProblem p;
  p.shape.N = sizes[0], p.shape.C = sizes[1];
  for (int a = 0; a < kAxes; ++a) {
    const int64_t* s = sizes + 2 + 7 * a;
    p.shape.axis[a] = {s[0], s[1], s[2], s[3], s[4], s[5]};
    p.shape.adaptive[a] = s[6];
  }
  p.dtype = DType(flags[0]), p.layout = Layout(flags[1]), p.count_padding = flags[2],
  p.divisor_override = flags[3];
  const auto& t = cuda::kernels();
  struct Entry {
    const char* op;
    const cuda::Kernels::Pool& list;
    std::vector<int> results;
  };
  const Entry entries[] = {
      {"max_pool", t.max_pool, {1}},
      {"max_pool_with_offsets", t.max_pool_with_offsets, {1, 2}},
      {"max_pool_indices", t.max_pool_indices, {3}},
      {"max_pool_grad_input", t.max_pool_grad_input, {0}},
      {"max_pool_select", t.max_pool_select, {1}},
      {"avg_pool", t.avg_pool, {1}},
      {"avg_pool_grad_input", t.avg_pool_grad_input, {0}},
      {"max_unpool", t.max_unpool, {0}},
      {"max_unpool_grad_input", t.max_unpool_grad_input, {1}},
  };
  for (const Entry& entry : entries) {
    if (std::strcmp(entry.op, op) != 0) continue;
    emulator::set_seed(seed);
    emulator::clear_regions();
    std::unique_ptr<Guarded> all[4];
    Guarded* given[4];
    for (int i = 0; i < 4; ++i) {
      const bool is_result = std::find(entry.results.begin(), entry.results.end(), i) != entry.results.end();
      all[i] = std::make_unique<Guarded>(tensors[i], bytes[i], is_result, shifts[i]);
      given[i] = all[i].get();
    }
    const PoolBuffers buffers = {given[0]->pointer(), given[1]->pointer(), given[2]->pointer(),
                                 static_cast<int64_t*>(given[3]->pointer()), nullptr};
    return run(*entry.list.begin(), p, buffers, cuda::Stream(), given, 4, entry.results.data(),
               int(entry.results.size()));
  }
  return answer(std::string("there is no operator ") + op);
} catch (const std::exception& error) {
  return answer(error.what());
}
