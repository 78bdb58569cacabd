// How work is cut into tasks.
#pragma once

#include "range.h"

namespace cnnext::cpu::CNNEXT_ISA {

// An axis in blocks, at least one, as equal as whole units allow.
struct CutAxis {
  CutAxis() = default;
  CutAxis(int64_t extent, int64_t unit_size) : size(extent), unit(unit_size) { cut(1); }

  void cut(int64_t into) {
    const int64_t units = max_of(1, ceil_div(size, unit));
    blocks = clamp(into, 1, units);
    block_size = ceil_div(units, blocks) * unit;
  }
  Range at(int64_t index) const { return {begin(index), begin(index + 1)}; }
  int64_t begin(int64_t index) const { return min_of(index * ceil_div(size, unit) / blocks * unit, size); }

  int64_t size = 1, unit = 1;
  int64_t blocks = 1, block_size = 1;  // of the largest
};

// Into how many blocks to cut, from `fewest` to `most`, so that threads have done `others` times as many
// tasks soonest. What each block prepares again takes a tenth of the whole.
CNNEXT_INLINE int64_t blocks_for(int64_t threads, int64_t others, int64_t most, int64_t fewest = 1) {
  int64_t best = fewest;
  double least = 0;
  for (int64_t blocks = fewest; blocks == fewest || blocks <= most; ++blocks) {
    const double time = double(ceil_div(others * blocks, threads)) * (0.1 + 1 / double(blocks));
    if (blocks == fewest || time < least) best = blocks, least = time;
    if (others * blocks >= 4 * threads) break;
  }
  return best;
}

// Whether more than a quarter of the threads' time is lost to tasks too few to share alike.
CNNEXT_INLINE bool leave_idle(int64_t tasks, int64_t threads) {
  return 3 * round_up(tasks, threads) > 4 * tasks;
}

// Makes a matrix's blocks smaller while their tasks, `each` of a block, leave threads idle and a block has
// more than `fewest_rows` or more than a unit of columns. A row weighs as much as `weight` columns.
inline void cut_for_threads(CutAxis& rows, CutAxis& cols, int64_t each, int64_t threads, int64_t fewest_rows,
                            int64_t weight) {
  while (leave_idle(rows.blocks * cols.blocks * each, threads) &&
         (rows.block_size > fewest_rows || cols.block_size > cols.unit)) {
    CutAxis& longer =
        weight * rows.block_size > cols.block_size || cols.block_size == cols.unit ? rows : cols;
    longer.cut(longer.blocks + 1);
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
