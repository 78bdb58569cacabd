// Fibers, barriers and the instructions of a warp.
#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>

namespace cnnext::emulator {

Fiber* current = nullptr;
Launch launched;
int64_t bank_conflicts = 0;
unsigned char* shared = nullptr;

namespace {

constexpr int kStack = 256 * 1024, kGuard = 4096;  // bytes
constexpr unsigned char kPoison = 0xff;            // NaN in every type

struct Running : Fiber {
  ucontext_t start;
  jmp_buf resume;
  bool started = false;
};

std::vector<Running*> pool;  // fibers are kept for the next block
std::vector<Running*> ready;
std::vector<Warp> warps;
jmp_buf scheduler;
const std::function<void()>* kernel_body = nullptr;
std::string error;
uint64_t random_state = 1;
int shared_size = 0;
int threads_at_barrier = 0;
bool any_condition = false, barrier_result = false;

struct Region {
  const char *begin, *end;
};
std::vector<Region> regions;

void leave() {  // back to the scheduler, until this fiber is chosen again
  if (_setjmp(static_cast<Running*>(current)->resume) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    (*kernel_body)();
    current->state = State::kDone;
    leave();
  }
}

Running* new_fiber() {
  auto* fiber = new Running;
  getcontext(&fiber->start);
  fiber->start.uc_stack.ss_sp =
      mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  fiber->start.uc_stack.ss_size = kStack;
  makecontext(&fiber->start, fiber_main, 0);
  return fiber;
}

void resume(Running* fiber) {
  current = fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber->started) _longjmp(fiber->resume, 1);
  fiber->started = true;
  setcontext(&fiber->start);
}

void finish(std::vector<Copy>& group) {
  while (!group.empty()) {
    const size_t i = random() % group.size();
    const Copy copy = group[i];
    group[i] = group.back();
    group.pop_back();
    std::memset(copy.to, 0, copy.bytes);
    if (copy.valid > 0) std::memcpy(copy.to, copy.from, copy.valid);
  }
}

void run_block(int threads) {
  std::memset(shared - kGuard, kPoison, shared_size + 2 * kGuard);
  warps.assign((threads + kWarp - 1) / kWarp, Warp());
  ready.clear();
  threads_at_barrier = 0;
  for (int i = 0; i < threads; ++i) {
    if (i == int(pool.size())) pool.push_back(new_fiber());
    Running* fiber = pool[i];
    fiber->thread = {unsigned(i), 0, 0};
    fiber->lane = i % kWarp;
    fiber->warp = &warps[i / kWarp];
    fiber->state = State::kReady;
    fiber->open.clear();
    fiber->pending.clear();
    ready.push_back(fiber);
  }
  int done = 0;
  while (error.empty() && done < threads) {
    if (ready.empty()) {
      if (threads_at_barrier + done == threads && done > 0) {
        error = "deadlock: " + std::to_string(threads_at_barrier) + " threads wait at a barrier, " +
                std::to_string(done) + " have left the kernel";
      } else {
        error = "deadlock: the lanes of a warp do not all reach the same instruction";
      }
      break;
    }
    const size_t i = random() % ready.size();
    Running* fiber = ready[i];
    ready[i] = ready.back();
    ready.pop_back();
    resume(fiber);
    if (fiber->state == State::kDone) ++done;
  }
  if (error.empty()) {
    for (int i = 0; i < kGuard; ++i) {
      if (shared[-1 - i] != kPoison || shared[shared_size + i] != kPoison) {
        error = "a write outside of shared memory";
        break;
      }
    }
  }
}

void make_ready(Fiber* fiber) {
  fiber->state = State::kReady;
  ready.push_back(static_cast<Running*>(fiber));
}

}  // namespace

void fail(const std::string& message) {
  if (error.empty()) error = message;
  _longjmp(scheduler, 1);
}

void set_seed(unsigned seed) { random_state = seed * 2654435761u + 88172645463325252u; }
unsigned random() {  // xorshift
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state >> 11;
}

void add_region(const void* begin, int64_t bytes) {
  regions.push_back({static_cast<const char*>(begin), static_cast<const char*>(begin) + bytes});
}
void clear_regions() { regions.clear(); }

void check_inside(const void* at, int64_t bytes) {
  const char* begin = static_cast<const char*>(at);
  const char* s = reinterpret_cast<const char*>(shared);
  if (begin >= s && begin + bytes <= s + shared_size) return;
  for (const Region& region : regions) {
    if (begin >= region.begin && begin + bytes <= region.end) return;
  }
  fail("an access of " + std::to_string(bytes) + " bytes outside of every tensor");
}
void check_access(const void* at, int64_t bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) {
    fail("an access of " + std::to_string(bytes) + " bytes is not aligned");
  }
  check_inside(at, bytes);
}

void barrier() {
  const int threads = launched.block_size.x;
  if (++threads_at_barrier < threads) {
    current->state = State::kBarrier;
    leave();
    return;
  }
  threads_at_barrier = 0;
  barrier_result = any_condition;
  any_condition = false;
  for (int i = 0; i < threads; ++i) {
    if (pool[i]->state == State::kBarrier) make_ready(pool[i]);
  }
}

void together(void (*what)(void**), void* argument) {
  Warp& warp = *current->warp;
  const void* mine = reinterpret_cast<const void*>(what);
  if (warp.arrived > 0 && warp.what != mine) fail("the lanes of a warp are at different instructions");
  warp.what = mine;
  warp.slot[current->lane] = argument;
  if (++warp.arrived < kWarp) {
    current->state = State::kWarp;
    leave();
    return;
  }
  what(warp.slot);
  warp.arrived = 0;
  const int first = int(&warp - warps.data()) * kWarp;
  for (int i = first; i < first + kWarp; ++i) {
    if (pool[i]->state == State::kWarp) make_ready(pool[i]);
  }
}

void run(Dim grid, int threads, int shared_bytes, const std::function<void()>& body) {
  static std::vector<unsigned char> memory(kMostShared + 2 * kGuard + 128);
  if (shared_bytes > kMostShared) throw std::runtime_error("too much shared memory");
  shared = memory.data() + kGuard;
  shared += 128 - reinterpret_cast<uintptr_t>(shared) % 128;
  shared_size = shared_bytes;
  kernel_body = &body;
  launched = {{}, grid, {unsigned(threads), 1, 1}};
  error.clear();
  std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  for (size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[random() % i]);
  for (const uint64_t block : blocks) {
    launched.block = {unsigned(block % grid.x), unsigned(block / grid.x % grid.y),
                      unsigned(block / grid.x / grid.y)};
    run_block(threads);
    if (!error.empty()) {
      pool.clear();  // they hang in the middle of the kernel
      throw std::runtime_error(error);
    }
  }
}

void copy_async(void* to, const void* from, int bytes, int valid) {
  check_access(to, bytes);
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) fail("the source of a copy is not aligned");
  if (valid > 0) check_inside(from, valid);
  std::memset(to, kPoison, bytes);
  current->open.push_back({to, from, bytes, valid});
}
void commit_copies() {
  current->pending.push_back(std::move(current->open));
  current->open.clear();
  if (random() % 4 == 0) finish(current->pending.back());
}
void wait_copies(int groups_left) {
  auto& pending = current->pending;
  while (int(pending.size()) > groups_left) {
    finish(pending.front());
    pending.erase(pending.begin());
  }
}

namespace {

struct Matrix {
  const unsigned char* row;
  bool transposed;
  uint32_t* fragment;
};

void load_matrices(void** lanes) {
  const auto lane = [&](int i) { return static_cast<Matrix*>(lanes[i]); };
  for (int m = 0; m < 4; ++m) {
    int rows_in_bank[8] = {};
    for (int r = 0; r < 8; ++r) ++rows_in_bank[reinterpret_cast<uintptr_t>(lane(8 * m + r)->row) / 16 % 8];
    bank_conflicts += *std::max_element(rows_in_bank, rows_in_bank + 8) - 1;
    for (int i = 0; i < kWarp; ++i) {
      uint16_t pair[2];
      for (int e = 0; e < 2; ++e) {
        const int along = 2 * (i % 4) + e, across = i / 4;
        const int row = lane(i)->transposed ? along : across, column = lane(i)->transposed ? across : along;
        std::memcpy(&pair[e], lane(8 * m + row)->row + 2 * column, 2);
      }
      std::memcpy(&lane(i)->fragment[m], pair, 4);
    }
  }
}

struct Word {
  const uint32_t* from;
  uint32_t value;
};

void load_words(void** lanes) {
  std::vector<uintptr_t> words[32];
  size_t most = 1;
  for (int i = 0; i < kWarp; ++i) {
    auto* lane = static_cast<Word*>(lanes[i]);
    lane->value = *lane->from;
    const uintptr_t word = reinterpret_cast<uintptr_t>(lane->from) / 4;
    auto& bank = words[word % 32];
    if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
    most = std::max(most, bank.size());
  }
  bank_conflicts += most - 1;
}

struct Mma {
  Number number;
  float* c;
  const uint32_t *a, *b;
};

// The element of a fragment: register r, half e of it, as a float.
float element(Number number, uint32_t bits, int e) {
  if (number == Number::kTf32) return float_of(bits & ~0x1fffu);  // the unit reads no more bits
  const uint16_t half = bits >> (16 * e);
  return number == Number::kFloat16 ? to_float(Float16{half}) : to_float(BFloat16{half});
}

void multiply(void** lanes) {
  float a[16][16] = {}, b[16][8] = {};
  for (int i = 0; i < kWarp; ++i) {
    const Mma& lane = *static_cast<Mma*>(lanes[i]);
    const int group = i / 4, in_group = i % 4, elements = lane.number == Number::kTf32 ? 1 : 2;
    for (int e = 0; e < elements; ++e) {
      for (int r = 0; r < 4; ++r) {
        a[group + r % 2 * 8][in_group * elements + e + r / 2 * 4 * elements] =
            element(lane.number, lane.a[r], e);
      }
      for (int r = 0; r < 2; ++r) {
        b[in_group * elements + e + r * 4 * elements][group] = element(lane.number, lane.b[r], e);
      }
    }
  }
  const int depth = static_cast<Mma*>(lanes[0])->number == Number::kTf32 ? 8 : 16;
  for (int i = 0; i < kWarp; ++i) {
    float* c = static_cast<Mma*>(lanes[i])->c;
    for (int r = 0; r < 4; ++r) {
      const int row = i / 4 + r / 2 * 8, column = i % 4 * 2 + r % 2;
      for (int k = 0; k < depth; ++k) c[r] += a[row][k] * b[k][column];
    }
  }
}

template <class T>
struct Exchange {
  T value, result;
  int mask;
};
template <class T>
void exchange(void** lanes) {
  for (int i = 0; i < kWarp; ++i) {
    auto* lane = static_cast<Exchange<T>*>(lanes[i]);
    lane->result = static_cast<Exchange<T>*>(lanes[i ^ lane->mask])->value;
  }
}
template <class T>
T shuffle(T x, int mask) {
  Exchange<T> mine = {x, x, mask};
  together(exchange<T>, &mine);
  return mine.result;
}

}  // namespace

void ldmatrix(const void* row, bool transposed, uint32_t* fragment) {
  check_access(row, 16);
  Matrix mine = {static_cast<const unsigned char*>(row), transposed, fragment};
  together(load_matrices, &mine);
}
uint32_t load_shared(const uint32_t* from) {
  check_access(from, 4);
  Word mine = {from, 0};
  together(load_words, &mine);
  return mine.value;
}
void mma(Number number, float* c, const uint32_t* a, const uint32_t* b) {
  Mma mine = {number, c, a, b};
  together(multiply, &mine);
}
float shuffle_xor(float x, int mask) { return shuffle(x, mask); }
double shuffle_xor(double x, int mask) { return shuffle(x, mask); }

}  // namespace cnnext::emulator

bool __syncthreads_or(bool condition) {
  using namespace cnnext::emulator;
  any_condition |= condition;
  barrier();
  return barrier_result;
}
