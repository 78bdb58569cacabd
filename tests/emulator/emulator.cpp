// Fibers, the order in which they run, and what they wait for.
#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>

namespace cnnext::emulator {

Fiber* current = nullptr;
Launch launched;
int64_t most_blocks = 0;
int most_shared = kMostShared;
unsigned char* shared = nullptr;

namespace {

constexpr int kStack = 256 * 1024, kGuard = 4096, kAlignment = 1024;  // bytes

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
bool any_unfenced = false, fenced = false;  // before the barrier, and when the last one ended

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

void run_block(int threads) {
  std::memset(shared - kGuard, kPoison, shared_size + 2 * kGuard);
  warps.assign((threads + kWarp - 1) / kWarp, Warp());
  ready.clear();
  threads_at_barrier = 0;
  any_unfenced = fenced = false;
  for (int i = 0; i < threads; ++i) {
    if (i == int(pool.size())) pool.push_back(new_fiber());
    Running* fiber = pool[i];
    fiber->thread = {unsigned(i), 0, 0};
    fiber->lane = i % kWarp;
    fiber->warp = &warps[i / kWarp];
    fiber->state = State::kReady;
    fiber->open.clear();
    fiber->pending.clear();
    fiber->open_products.clear();
    fiber->products.clear();
    fiber->unfenced = false;
    ready.push_back(fiber);
  }
  reset_instructions();
  // In every other block a warp runs ahead as far as it can; among all its fibers warps would keep in step.
  const bool runs_ahead = random() % 2;
  int done = 0;
  while (error.empty() && done < threads) {
    if (ready.empty() || random() % 16 == 0) deliver();
    if (ready.empty() && !deliver()) {
      const auto waits = [](Running* fiber) { return fiber->state == State::kMbarrier; };
      const auto waiting = std::count_if(pool.begin(), pool.begin() + threads, waits);
      if (waiting > 0) {
        error = "deadlock: " + std::to_string(waiting) +
                " threads wait for a phase of an mbarrier that does not end";
      } else if (threads_at_barrier + done == threads && done > 0) {
        error = "deadlock: " + std::to_string(threads_at_barrier) + " threads wait at a barrier, " +
                std::to_string(done) + " have left the kernel";
      } else {
        error = "deadlock: the lanes of a warp do not all reach the same instruction";
      }
      break;
    }
    if (ready.empty()) continue;
    const size_t i = runs_ahead && random() % 64 > 0 ? ready.size() - 1 : random() % ready.size();
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

void note(const std::string& message) {
  if (error.empty()) error = message;
}
void fail(const std::string& message) {
  note(message);
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

bool all_is_fenced() { return fenced; }

void suspend(State state) {
  current->state = state;
  leave();
}
void wake(State state) {
  for (int i = 0; i < int(launched.block_size.x); ++i) {
    if (pool[i]->state == state) make_ready(pool[i]);
  }
}

void barrier() {
  const int threads = launched.block_size.x;
  any_unfenced |= current->unfenced;
  if (++threads_at_barrier < threads) return suspend(State::kBarrier);
  threads_at_barrier = 0;
  fenced = !any_unfenced;
  any_unfenced = false;
  barrier_result = any_condition;
  any_condition = false;
  wake(State::kBarrier);
}

void together(void (*what)(void**), void* argument) {
  Warp& warp = *current->warp;
  const void* mine = reinterpret_cast<const void*>(what);
  if (warp.arrived > 0 && warp.what != mine) fail("the lanes of a warp are at different instructions");
  warp.what = mine;
  warp.slot[current->lane] = argument;
  if (++warp.arrived < kWarp) return suspend(State::kWarp);
  what(warp.slot);
  warp.arrived = 0;
  const int first = int(&warp - warps.data()) * kWarp;
  for (int i = first; i < first + kWarp; ++i) {
    if (pool[i]->state == State::kWarp) make_ready(pool[i]);
  }
}

void run(Dim grid, int threads, int shared_bytes, const std::function<void()>& body) {
  static std::vector<unsigned char> memory(kMostShared + 2 * kGuard + kAlignment);
  if (shared_bytes > most_shared) throw std::runtime_error("too much shared memory");
  shared = memory.data() + kGuard;
  shared += kAlignment - reinterpret_cast<uintptr_t>(shared) % kAlignment;
  shared_size = shared_bytes;
  kernel_body = &body;
  launched = {{}, grid, {unsigned(threads), 1, 1}};
  error.clear();
  const uint64_t all = uint64_t{grid.x} * grid.y * grid.z, half = most_blocks;
  const bool some = half > 0 && all > 2 * half;
  std::vector<uint64_t> blocks(some ? 2 * half : all);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = some && i >= half ? all - 2 * half + i : i;
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

}  // namespace cnnext::emulator

bool __syncthreads_or(bool condition) {
  using namespace cnnext::emulator;
  any_condition |= condition;
  barrier();
  return barrier_result;
}
