// The instructions of a warp, and those that go on by themselves: asynchronous copies and mbarriers.
#include <algorithm>
#include <map>

#include "emulator.h"

namespace cnnext::emulator {

int64_t bank_conflicts = 0;

namespace {

// A barrier in shared memory: a phase ends when as many have arrived as it counts, and all bytes that were
// expected have been copied.
struct Mbarrier {
  int count, arrivals, bytes;
  bool parity;  // of the phase that runs
};
std::map<const void*, Mbarrier> mbarriers;

// Copies on their way that end with an arrival at an mbarrier, or with their bytes.
struct Delivery {
  std::vector<Copy> copies;
  const void* mbarrier;
  int arrivals, bytes;
};
std::vector<Delivery> in_flight;

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

Mbarrier& mbarrier_at(const void* address) {
  check_access(address, 8);
  const auto found = mbarriers.find(address);
  if (found == mbarriers.end()) fail("an mbarrier is used before its initialisation");
  return found->second;
}

// A fault here is noted, for there may be no fiber to end.
void count_down(const void* address, int arrivals, int bytes) {
  Mbarrier& barrier = mbarriers.at(address);
  barrier.arrivals += arrivals;
  barrier.bytes -= bytes;
  if (barrier.arrivals > barrier.count) note("more arrivals at an mbarrier than it counts");
  if (barrier.arrivals < barrier.count || barrier.bytes != 0) return;
  barrier.arrivals = 0;
  barrier.parity = !barrier.parity;
  wake(State::kMbarrier);
}

}  // namespace

void reset_instructions() {
  mbarriers.clear();
  in_flight.clear();
}

bool deliver() {
  if (in_flight.empty()) return false;
  const size_t i = random() % in_flight.size();
  std::swap(in_flight[i], in_flight.back());
  Delivery delivery = std::move(in_flight.back());
  in_flight.pop_back();
  finish(delivery.copies);
  count_down(delivery.mbarrier, delivery.arrivals, delivery.bytes);
  return true;
}

void mbarrier_init(void* address, int count) {
  check_access(address, 8);
  std::memset(address, 0, 8);
  mbarriers[address] = {count, 0, 0, false};
}
void mbarrier_arrive(void* address, int expected_bytes) {
  mbarrier_at(address).bytes += expected_bytes;
  count_down(address, 1, 0);
}
void mbarrier_arrive_after_copies(void* address) {
  mbarrier_at(address);
  std::vector<Copy> copies = std::move(current->open);
  for (const auto& group : current->pending) copies.insert(copies.end(), group.begin(), group.end());
  current->open.clear();
  current->pending.clear();
  in_flight.push_back({copies, address, 1, 0});
}
void mbarrier_wait(void* address, bool parity) {
  while (mbarrier_at(address).parity == parity) suspend(State::kMbarrier);
}
void copy_bulk(void* to, const void* from, int bytes, void* address) {
  mbarrier_at(address);
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes) % 16 != 0) {
    fail("a bulk copy is not of aligned chunks of 16 bytes");
  }
  check_inside(to, bytes);
  check_inside(from, bytes);
  std::memset(to, kPoison, bytes);
  in_flight.push_back({{{to, from, bytes, bytes}}, address, 0, bytes});
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
  current->unfenced |= int(pending.size()) > groups_left;
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

namespace {

constexpr int kAddressBits = 18;  // of shared memory

// Element [row, k] of an operand in shared memory, as a float.
float operand(Number number, uint64_t descriptor, bool across, int row, int k) {
  const auto field = [&](int bit) { return int(descriptor >> bit & 0x3fff) << 4; };
  const int to_next_columns = field(16), to_next_8 = field(32);
  const int bytes = number == Number::kTf32 ? 4 : 2;
  int at = field(0);
  if (across) {
    at += row / 64 * to_next_columns + row % 64 * bytes + k / 8 * to_next_8 + k % 8 * 128;
  } else {
    at += row / 8 * to_next_8 + row % 8 * 128 + k * bytes;
  }
  at ^= (at >> 7 & 7) << 4;
  check_access(shared + at, bytes);
  uint32_t bits = 0;
  std::memcpy(&bits, shared + at, bytes);
  return element(number, bits, 0);
}

void finish(std::vector<Product>& group) {
  for (const Product& p : group) {
    const auto number = Number(p.number);
    const int first_row = current->thread.x / kWarp % 4 * 16 + current->lane / 4;
    const int depth = number == Number::kTf32 ? 8 : 16;
    for (int r = 0; r < 2; ++r) {
      float a[16];
      for (int k = 0; k < depth; ++k) {
        a[k] =
            p.rows.empty() ? operand(number, p.a, p.across_a, first_row + 8 * r, k) : p.rows[depth * r + k];
      }
      for (int j = 0; j < p.count / 4; ++j) {
        for (int e = 0; e < 2; ++e) {
          float& sum = p.c[4 * j + 2 * r + e];
          for (int k = 0; k < depth; ++k) {
            sum += a[k] * operand(number, p.b, p.across_b, 8 * j + current->lane % 4 * 2 + e, k);
          }
        }
      }
    }
  }
  group.clear();
}

void check_same(void** lanes) {
  const auto* first = static_cast<Product*>(lanes[0]);
  for (int i = 1; i < kWarp; ++i) {
    const auto* lane = static_cast<Product*>(lanes[i]);
    if (lane->a != first->a || lane->b != first->b) note("lanes give a matrix product other operands");
  }
}

// Gives every lane the two rows of a[16, 8] that it needs of its warp's registers.
struct Fragment {
  const uint32_t* a;
  std::vector<float> rows;
};
void gather_rows(void** lanes) {
  for (int i = 0; i < kWarp; ++i) {
    auto* lane = static_cast<Fragment*>(lanes[i]);
    for (int r = 0; r < 2; ++r) {
      for (int k = 0; k < 8; ++k) {
        const auto* holder = static_cast<Fragment*>(lanes[i / 4 * 4 + k % 4]);
        lane->rows.push_back(element(Number::kTf32, holder->a[k / 4 * 2 + r], 0));
      }
    }
  }
}

// Products read shared memory when they please, so all must have been fenced.
void start(Product product) {
  if (!all_is_fenced()) fail("a matrix product reads what was not fenced for it, with a barrier behind");
  together(check_same, &product);
  current->open_products.push_back(std::move(product));
}

}  // namespace

uint64_t wgmma_operand(const void* start, int to_next_8, int to_next_columns) {
  check_access(start, 16);
  const auto at = uint64_t(static_cast<const unsigned char*>(start) - shared);
  if (at >> kAddressBits != 0) fail("an operand's address has more bits than shared memory");
  return uint64_t{1} << 62 | uint64_t(to_next_8 >> 4) << 32 | uint64_t(to_next_columns >> 4) << 16 | at >> 4;
}
void fence_for_wgmma() { current->unfenced = false; }
void wgmma(Number number, float* c, int count, uint64_t a, bool across_a, uint64_t b, bool across_b) {
  start({int(number), c, count, a, b, across_a, across_b, {}});
}
void wgmma_tf32(float* c, int count, const uint32_t* a, uint64_t b) {
  Fragment mine = {a, {}};
  together(gather_rows, &mine);
  start({int(Number::kTf32), c, count, 0, b, false, false, std::move(mine.rows)});
}
void wgmma_commit() {
  current->products.push_back(std::move(current->open_products));
  current->open_products.clear();
  if (random() % 4 == 0) {
    for (auto& group : current->products) finish(group);
  }
}
void wgmma_wait(int groups_left) {
  auto& products = current->products;
  while (int(products.size()) > groups_left) {
    finish(products.front());
    products.erase(products.begin());
  }
}

bool any(bool condition) {
  together(
      [](void** lanes) {
        bool found = false;
        for (int i = 0; i < kWarp; ++i) found = found || *static_cast<bool*>(lanes[i]);
        for (int i = 0; i < kWarp; ++i) *static_cast<bool*>(lanes[i]) = found;
      },
      &condition);
  return condition;
}
float shuffle_xor(float x, int mask) { return shuffle(x, mask); }
double shuffle_xor(double x, int mask) { return shuffle(x, mask); }

}  // namespace cnnext::emulator
