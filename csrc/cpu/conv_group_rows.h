// How the channels of a group are copied to scratch memory and back, or those of a bundle: of two or four
// narrow groups, which fill a vector side by side in memory, [group][channel], and take turns in scratch
// memory, [channel][group].
#pragma once

#include "copy.h"
#include "range.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kMostJoined = 4;         // groups
constexpr int64_t kMostChannels = 32;  // that are copied, of a bundle

// How many groups are joined to a bundle; one, if that cannot be.
inline int64_t joined_groups(const ConvProblem& p) {
  const int64_t channels = p.shape.C_per_group(), lanes = lanes_of(p.dtype);
  if (channels != p.shape.K_per_group()) return 1;
  for (int64_t joined = kMostJoined; joined > 1; joined /= 2) {
    if (joined * channels == lanes && channels > 1 && p.shape.groups % joined == 0) return joined;
  }
  return 1;
}
// visit(joined as std::integral_constant<int, joined>), for those of a type that fill its vectors.
template <class A, class Visit>
auto with_joined(int64_t joined, Visit&& visit) {
  if constexpr (kLanes<A> >= 8) {
    if (joined == 4) return visit(std::integral_constant<int, 4>());
  }
  if constexpr (kLanes<A> >= 4) {
    if (joined == 2) return visit(std::integral_constant<int, 2>());
  }
  return visit(std::integral_constant<int, 1>());
}

// The rows of a bundle's source, side by side: columns of each residue of the stride, padded with zeros.
struct GroupRows {
  GroupRows(const ConvShape& shape, bool gradient) {
    const Window& w = shape.axis[2];
    low = high = 0;
    for (int64_t r = 0; r < (gradient ? min_of(w.stride, w.input) : 1); ++r) {
      const PhaseAxis x = gradient ? grad_input_phase(w, r) : forward_phase(w);
      if (x.taps == 0 || x.count == 0) continue;
      low = min_of(low, x.source_index(0, 0));
      high = max_of(high, x.source_index(x.count - 1, x.taps - 1) + 1);
    }
    step = gradient ? 1 : clamp(shape.axis[2].stride, 1, max_of(high - low, 1));  // no more than are read
    of_residue = ceil_div(high - low, step);
  }
  // All of some columns.
  GroupRows(int64_t first, int64_t columns)
      : step(1), low(first), high(first + columns), of_residue(columns) {}
  int64_t size() const { return of_residue * step; }
  // Of a residue's columns, those inside of the source.
  Range inside(int64_t residue, int64_t width) const {
    const int64_t first = low + residue;
    const int64_t begin = clamp(ceil_div(max_of(-first, 0), step), 0, of_residue);
    return {begin, clamp(ceil_div(max_of(width - first, 0), step), begin, of_residue)};
  }
  int64_t at(int64_t column) const { return (column - low) % step * of_residue + (column - low) / step; }
  int64_t step, low, high, of_residue;  // columns
};

// Some channels of some rows of `width` columns to to[row][column][pixel]. What lies `next` elements further
// is fetched for the next copy.
template <int Joined = 1, class T>
void copy_group_rows(const T* source, int64_t step, int64_t width, Range rows, const GroupRows& row,
                     int64_t channels, int64_t pixel, int64_t next, Acc<T>* to) {
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const T* from = source + i * width * step;
    for (int64_t residue = 0; residue < row.step; ++residue) {
      const Range inside = row.inside(residue, width);
      fill_zero(to, inside.begin * pixel);
      to += inside.begin * pixel;
      const T* at = from + (row.low + residue + inside.begin * row.step) * step;
      for (int64_t n = inside.size(); n > 0; --n, at += row.step * step, to += pixel) {
        constexpr bool kPairs = std::is_same_v<T, BFloat16Pair>;  // are copied as they are
        if constexpr (Joined > 1) {
          store(to, turn_lanes<Joined>(load(at)));
        } else if (kPairs && channels == 8) {
          __builtin_memcpy(to, at, 8 * sizeof(T));
        } else if (kPairs && channels == 4) {
          __builtin_memcpy(to, at, 4 * sizeof(T));
        } else {
          copy_run(at, to, channels);
        }
        for (int64_t k = 0; k < channels; k += kAlignment / int64_t(sizeof(T)))
          __builtin_prefetch(at + next + k, 0, 2);
      }
      fill_zero(to, (row.of_residue - inside.end) * pixel);
      to += (row.of_residue - inside.end) * pixel;
    }
  }
}

// The same for channels first, whose planes are `plane` apart.
template <class From, class A>
void turn_group_rows(From source, int64_t plane, int64_t width, Range rows, const GroupRows& row,
                     int64_t channels, int64_t pixel, A* to, int64_t joined = 1) {
  constexpr int64_t L = kLanes<A>;
  int64_t plane_of[kMostChannels];
  for (int64_t n = 0; n < channels; ++n)
    plane_of[n] = (n % joined * (channels / joined) + n / joined) * plane;
  for (int64_t i = 0; i < rows.size(); ++i) {
    for (int64_t residue = 0; residue < row.step; ++residue) {
      A* columns = to + (i * row.size() + residue * row.of_residue) * pixel;
      const Range inside = row.inside(residue, width);
      fill_zero(columns, inside.begin * pixel);
      fill_zero(columns + inside.end * pixel, (row.of_residue - inside.end) * pixel);
    }
  }
  const int64_t pixels = rows.size() * width;
  const From from = source + rows.begin * width;
  for (int64_t p = 0; p < pixels; p += L) {
    const int64_t count = min_of(pixels, L);
    p = min_of(p, pixels - count);  // the last vectors overlap those before
    A* place[L];
    int64_t i = p / width, column = p % width;
    for (int64_t n = 0; n < count; ++n) {
      const bool read = column >= row.low && column < row.low + row.size();
      place[n] = read ? to + (i * row.size() + row.at(column)) * pixel : nullptr;
      if (++column == width) column = 0, ++i;
    }
    for (int64_t c = 0; c < channels; c += L) {
      const int64_t some = min_of(channels, L);  // of pairs there may be less
      c = min_of(c, channels - some);
      Vec<A> x[L] = {};
#pragma GCC unroll 16
      for (int64_t n = 0; n < some; ++n) x[n] = load_part(from + (plane_of[c + n] + p), count);
      transpose<A>(x);
      for (int64_t n = 0; n < count; ++n) {
        if (place[n]) store(place[n] + c, x[n]);
      }
    }
  }
}

// pixels[pixel][channel] to planes.
template <class T>
void store_group_planes(const T* from, int64_t channels, int64_t pixels, int64_t plane, T* to) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  for (int64_t p = 0; p < pixels; p += L) {
    const int64_t count = min_of(pixels, L);
    p = min_of(p, pixels - count);
    for (int64_t c = 0; c < channels; c += L) {
      Vec<A> x[L] = {};
      for (int64_t n = 0; n < count; ++n) x[n] = load(from + (p + n) * channels + c);
      transpose<A>(x);
#pragma GCC unroll 16
      for (int64_t n = 0; n < L; ++n) store_part(to + (c + n) * plane + p, x[n], count);
    }
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
