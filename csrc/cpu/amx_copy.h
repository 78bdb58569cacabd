// The rows of the source that a block reads, copied for AMX: with zeros in the padding, each position's
// channels in parts of bfloat16.
#pragma once

#include "amx_blocks.h"

#if CNNEXT_VECTOR_BYTES == 64

namespace cnnext::cpu::CNNEXT_ISA {

// A chunk of channels that are planes, turned: to[pixel] are its parts for up to 16 pixels. load_pixels(c)
// are those of a channel.
template <class Load>
CNNEXT_INLINE void turn_chunk(const float*, int64_t pixels, int64_t pitch, char* to, Load&& load_pixels) {
  Vec<float> x[kAmxDepth];
#pragma GCC unroll 2
  for (int64_t half = 0; half < kAmxDepth; half += kAmxPairs) {
#pragma GCC unroll 16
    for (int64_t c = half; c < half + kAmxPairs; ++c) x[c] = load_pixels(c);
    transpose<float>(x + half);
  }
  for (int64_t p = 0; p < pixels; ++p) put_pairs<3>(x[p], x[kAmxPairs + p], to + p * pitch, 64);
}
template <class Load>
CNNEXT_INLINE void turn_chunk(const BFloat16*, int64_t pixels, int64_t pitch, char* to, Load&& load_pixels) {
  Vec<float> x[kAmxPairs];
#pragma GCC unroll 16
  for (int64_t c = 0; c < kAmxPairs; ++c) {
    const auto first = bit_cast<UintVec>(load_pixels(2 * c)),
               second = bit_cast<UintVec>(load_pixels(2 * c + 1));
    x[c] = bit_cast<Vec<float>>(first >> 16 | second);
  }
  transpose<float>(x);
  for (int64_t p = 0; p < pixels; ++p) store_unaligned(to + p * pitch, x[p]);
}

// T is the type of the source; `scratch` is written where channels are few planes.
template <class T>
struct AmxCopy {
  static constexpr int kP = kParts<T>;

  Strides source;
  const T* end;  // of the source: memory is readable up to there
  T* scratch;    // of scratch_size() numbers

  static int64_t scratch_size(const AmxPlan<kP>& plan) {
    return plan.joined_taps ? (row_of(plan, plan.width) + plan.g.axis[2].taps) * plan.g.channels : 0;
  }

  void rows(const AmxTask<kP>& t, Range slice, const T* from, char* to) const {
    const AmxPlan<kP>& plan = t.plan;
    const Gather& g = plan.g;
    const CopyAxis rows = plan.rows(t.lines.size()), columns = plan.columns(t.columns.size());
    const int64_t pitch = plan.pitch(), run_bytes = columns.length * pitch;
    for (int64_t plane = t.planes.begin; plane < t.planes.end; ++plane) {
      for (int64_t m0 = 0; m0 < plan.taps[0]; ++m0, to += rows.size() * columns.size() * pitch) {
        const int64_t i0 = g.axis[0].source_index(plane % g.axis[0].count, m0);
        for (int64_t r = 0; r < rows.size(); ++r) {
          const int64_t i1 = g.axis[1].source_index(t.lines.begin, 0) + rows.first(r / rows.length) +
                             r % rows.length * rows.step;
          const bool inside = i0 >= 0 && i0 < g.axis[0].source && i1 >= 0 && i1 < g.axis[1].source;
          const T* row = from + plane / g.axis[0].count * source.image +
                         (i0 * g.axis[1].source + i1) * g.axis[2].source * source.pixel;
          for (int64_t run = 0; run < columns.runs; ++run) {
            char* out = to + (run * rows.size() + r) * run_bytes;
            const int64_t first = g.axis[2].source_index(t.columns.begin, 0) + columns.first(run);
            if (!inside) {
              fill_zero(out, run_bytes);
            } else if (plan.joined_taps) {
              copy_windows(plan, row, first, columns.length, out);
            } else {
              copy_pixels(plan, slice, row, first, columns.length, out);
            }
          }
        }
      }
    }
  }

 private:
  // Pixels `source_step` apart in a row, each with a slice of its channels.
  void copy_pixels(const AmxPlan<kP>& plan, Range slice, const T* row, int64_t first, int64_t count,
                   char* to) const {
    const PhaseAxis& x = plan.g.axis[2];
    const int64_t step = x.source_step, pitch = plan.pitch(), begin = slice.begin * kAmxDepth;
    const int64_t size = min_of(slice.end * kAmxDepth, plan.run) - begin;
    const int64_t low = clamp(ceil_div(max_of(-first, 0), step), 0, count);
    const int64_t high = clamp(ceil_div(max_of(x.source - first, 0), step), low, count);
    fill_zero(to, low * pitch);
    const T* from = row + (first + low * step) * source.pixel + begin * source.channel;
    if (source.channel == 1) {
      for (int64_t n = low; n < high; ++n, from += step * source.pixel)
        put_numbers(from, size, end, to + n * pitch);
    } else if (step == 1) {
      turn_pixels<1>(from, step, high - low, size, pitch, to + low * pitch);
    } else if (step == 2) {
      turn_pixels<2>(from, step, high - low, size, pitch, to + low * pitch);
    } else {
      turn_pixels<0>(from, step, high - low, size, pitch, to + low * pitch);
    }
    fill_zero(to + high * pitch, (count - high) * pitch);
  }

  // Pixels with channels that are planes: along 32 of them at a time, which the processor fetches by itself.
  // Step: zero for any.
  template <int Step>
  __attribute__((noinline)) void turn_pixels(const T* from, int64_t step, int64_t count, int64_t channels,
                                             int64_t pitch, char* to) const {
    for (int64_t c = 0; c < channels; c += kAmxDepth) {
      const int64_t some = min_of(kAmxDepth, channels - c);
      for (int64_t at = 0; at < count; at += kAmxRows) {
        const int64_t pixels = min_of(kAmxRows, count - at);
        const T* chunk = from + c * source.channel + at * step;
        char* out = to + at * pitch + c / kAmxDepth * kP * 64;
        const bool room = end - chunk > (some - 1) * source.channel + (kAmxRows - 1) * step;
        if (Step > 0 && room) {
          turn_chunk(chunk, pixels, pitch, out, [&](int64_t n) {
            return n < some ? load_row<Step>(chunk + n * source.channel) : Vec<float>{};
          });
        } else {
          turn_chunk(chunk, pixels, pitch, out, [&](int64_t n) {
            Vec<float> x = {};
            for (int64_t p = 0; n < some && p < pixels; ++p)
              x[p] = load_one(chunk + n * source.channel + p * step);
            return x;
          });
        }
      }
    }
  }
  template <int Step>
  static __attribute__((always_inline)) Vec<float> load_row(const T* from) {
    if constexpr (Step == 2) {
      return load_every<2>(from, std::make_integer_sequence<int, int(kLanes<float>)>());
    } else {
      return load(from);
    }
  }

  // Pixels with all taps of the row.
  void copy_windows(const AmxPlan<kP>& plan, const T* row, int64_t first, int64_t count, char* to) const {
    const PhaseAxis& x = plan.g.axis[2];
    const int64_t C = plan.g.channels, reach = (x.taps - 1) * x.offset_step;
    int64_t width = x.source, pixel = source.pixel;
    const T* readable = end;
    T* window = scratch;
    if (source.channel != 1) {  // the part of the row that is read is turned first
      width = row_of(plan, count), pixel = C;
      fill_zero(scratch, width * C);
      const int64_t low = clamp(-first, 0, width), high = clamp(x.source - first, low, width);
      for (int64_t c = 0; c < C; ++c) {
        for (int64_t i = low; i < high; ++i) scratch[i * C + c] = row[c * source.channel + first + i];
      }
      row = scratch, first = 0, window = scratch + width * C, readable = window;
    }
    const bool one_run = x.offset_step == 1 && pixel == C;
    for (int64_t n = 0; n < count; ++n, first += x.source_step, to += plan.pitch()) {
      if (one_run && first >= 0 && first + reach < width) {
        put_numbers(row + first * pixel, plan.run, readable, to);
        continue;
      }
      for (int64_t m = 0; m < x.taps; ++m) {
        const int64_t i = first + m * x.offset_step;
        if (i >= 0 && i < width) {
          __builtin_memcpy(window + m * C, row + i * pixel, C * sizeof(T));
        } else {
          fill_zero(window + m * C, C);
        }
      }
      put_numbers(window, plan.run, window + plan.run, to);
    }
  }

  // Pixels of the source that so many pixels of a row read.
  static int64_t row_of(const AmxPlan<kP>& plan, int64_t count) {
    const PhaseAxis& x = plan.g.axis[2];
    return (count - 1) * x.source_step + (x.taps - 1) * x.offset_step + 1;
  }
};

}  // namespace cnnext::cpu::CNNEXT_ISA

#endif  // AVX-512
