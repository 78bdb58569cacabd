// Rows of pixels as the operands of AMX: how they are copied, split into bfloat16 and multiplied.
//
// A block's rows are copied with their padding, once. Neighbouring pixels are the rows of a register, and a
// tap is a distance in the copy, so that windows are read where they are. A float32 is the sum of three
// bfloat16: a high part, a middle and a low one. Of the nine products of two such numbers the six largest are
// summed; what is left out is below 2^-25 of the product.
#pragma once

#include "amx_tile.h"
#include "conv_gemm_pairs.h"

#if CNNEXT_VECTOR_BYTES == 64

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int64_t kAmxDepth = 2 * kAmxPairs;  // of the numbers in a register's row: a chunk of the depth
constexpr int64_t kAmxPixels = 512;           // of a task, about
constexpr int64_t kAmxBytes = 512 << 10;      // of the copy, and of the sums of a slice
constexpr int64_t kAmxNear = 128 << 10;       // of weights that are read again for each two strips
constexpr int64_t kAmxChain = 32;             // products of registers that are summed in one chain of float32
constexpr int64_t kAmxNarrow = 12;            // shorter rows of pixels do not fill registers

template <class T>
constexpr int kParts = std::is_same_v<T, float> ? 3 : 1;

// One axis of the copy. Its positions come in runs, in each of which neighbouring pixels are neighbours: one
// for each residue of the stride, or, where that is shorter, one for each tap.
struct CopyAxis {
  CopyAxis(const PhaseAxis& x, int64_t taps, int64_t pixels, bool apart)
      : step(x.source_step), tap_step(x.offset_step), apart(apart), runs(taps), length(pixels) {
    const int64_t reach = (taps - 1) * tap_step, each = pixels + reach / step;
    if (apart || taps * pixels <= min_of(step, reach + 1) * each) {
      this->apart = true;
    } else {
      runs = min_of(step, reach + 1);
      length = each;
    }
  }
  int64_t size() const { return runs * length; }
  int64_t run_of(int64_t tap) const { return apart ? tap : tap * tap_step % step; }
  int64_t in_run(int64_t tap) const { return apart ? 0 : tap * tap_step / step; }
  int64_t first(int64_t run) const { return apart ? run * tap_step : run; }  // that it reads

  int64_t step, tap_step;
  bool apart;
  int64_t runs, length;
};

// How a phase is cut into blocks of pixels, and how a block is copied.
template <int Parts>
struct AmxPlan {
  // `pixel_bytes` is the distance of the source's pixels, `others` the number of times that such pixels are
  // computed.
  AmxPlan(const Gather& gather, int64_t pixel_bytes, int64_t others, int64_t threads, bool one) : g(gather) {
    const int64_t C = g.channels, across = g.axis[2].taps;
    // Few channels: the taps of a row are numbers side by side.
    joined_taps = across > 1 && 4 * ceil_div(across * C, kAmxDepth) <= 3 * across * ceil_div(C, kAmxDepth);
    for (int a = 0; a < kAxes; ++a) taps[a] = joined_taps && a == 2 ? 1 : g.axis[a].taps;
    run = joined_taps ? across * C : C;
    chunks = ceil_div(run, kAmxDepth);
    // The source's pixels may be a register's rows as they are. Rows a multiple of 4 KiB apart would push
    // each other out of the first-level cache.
    in_place = Parts == 1 && run % kAmxDepth == 0 && pixel_bytes % 4096 != 0;
    for (const PhaseAxis& x : g.axis) in_place &= is_plain(x);

    const int64_t count = max_of(1, g.axis[2].count);
    all_lines = max_of(1, g.axis[1].count), all_planes = max_of(1, g.images * g.axis[0].count);
    pieces = ceil_div(count, kAmxPixels);
    if (pieces > 1) pieces = blocks_for(threads, others * all_planes * all_lines, count, pieces);
    width = ceil_div(count, pieces);
    pieces = ceil_div(count, width);
    // Gaps between the rows of pixels would waste more than to copy each tap's columns apart.
    const int64_t gap = (taps[2] - 1) * g.axis[2].offset_step / g.axis[2].source_step;
    columns_apart = 4 * gap > width || (g.axis[2].count < kAmxNarrow && g.axis[1].count > 1);
    const int64_t most = one ? all_lines * width : kAmxPixels;
    lines = pieces > 1 ? 1 : clamp(most / width, 1, all_lines);
    while (lines > 1 && positions() * Parts * 2 * 64 > kAmxBytes) lines = ceil_div(lines, 2);
    line_blocks = ceil_div(all_lines, lines);
    plane_blocks = all_planes;
    if (line_blocks > 1 || pieces > 1) {
      line_blocks = blocks_for(threads, others * all_planes * pieces, all_lines, line_blocks);
    } else {
      const int64_t fewest = one ? 1 : ceil_div(all_planes, max_of(1, kAmxPixels / (lines * width)));
      plane_blocks = one ? 1 : blocks_for(threads, others, all_planes, fewest);
    }
    lines = ceil_div(all_lines, line_blocks);
    line_blocks = ceil_div(all_lines, lines);
    planes = ceil_div(all_planes, plane_blocks);
    plane_blocks = ceil_div(all_planes, planes);
    const int64_t most_chunks = kAmxBytes / max_of(1, planes * positions() * Parts * 64);
    const int64_t slices =
        in_place || joined_taps ? 1 : ceil_div(chunks, max_of(1, most_chunks / chain() * chain()));
    slice = min_of(chunks, round_up(ceil_div(chunks, slices), chain()));
  }

  int64_t blocks() const { return pieces * line_blocks * plane_blocks; }
  int64_t pixels() const { return planes * lines * width; }
  int64_t chain() const { return Parts == 1 ? 1 : max_of(1, kAmxChain / max_of(1, units())); }
  int64_t units() const { return taps[0] * taps[1] * taps[2]; }
  int64_t pitch() const { return odd_lines(slice * Parts * 16) * 4; }  // bytes from a position to the next
  CopyAxis rows(int64_t count) const { return CopyAxis(g.axis[1], taps[1], count, false); }
  CopyAxis columns(int64_t count) const { return CopyAxis(g.axis[2], taps[2], count, columns_apart); }
  int64_t positions(int64_t block_lines, int64_t block_width) const {  // for a plane of pixels
    return taps[0] * rows(block_lines).size() * columns(block_width).size();
  }
  int64_t positions() const { return positions(lines, width); }
  int64_t copy_bytes() const { return in_place ? 0 : planes * positions() * pitch(); }
  // A line of positions that pixels have one behind the other in the copy: a plane, with the gaps between its
  // rows, or all planes.
  int64_t line(int64_t block_planes, int64_t block_lines, int64_t block_width) const {
    if (units() == 1) return block_planes * block_lines * block_width;
    return (block_lines - 1) * columns(block_width).length + block_width;
  }
  int64_t strips() const {
    return (units() == 1 ? 1 : planes) * ceil_div(line(planes, lines, width), kAmxRows);
  }
  int64_t places() const { return (units() == 1 ? 1 : planes) * line(planes, lines, width); }

  Gather g;
  bool joined_taps, in_place, columns_apart;
  int64_t taps[kAxes];
  int64_t run, chunks, slice;  // numbers that a tap multiplies; chunks of them, in all and in a slice
  int64_t all_lines, all_planes;
  int64_t width, lines, planes, pieces, line_blocks, plane_blocks;
};

// Which parts the n-th product of two numbers multiplies, small products first; none before the first.
template <int Parts>
constexpr int kPartsProducts = Parts == 3 ? 6 : 1;
template <int Parts>
constexpr int part_of_a(int n) {
  constexpr int kPart[] = {0, 0, 1, 1, 2, 0};
  return n < 0 ? -1 : Parts == 1 ? 0 : kPart[n];
}
template <int Parts>
constexpr int part_of_b(int n) {
  constexpr int kPart[] = {2, 1, 1, 0, 0, 0};
  return n < 0 ? -1 : Parts == 1 ? 0 : kPart[n];
}

// Where windows are in the copy, and their weights in a panel: distances of the taps, in bytes.
struct Tap {
  int64_t copy, panel;
};
struct Windows {
  const Tap* tap;
  int64_t taps, chunks, pitch;
  int64_t chain;  // chunks that are summed before they are added to the sums: short chains round less
};
constexpr int64_t kChunkBytes = kAmxPairs * kAmxCols * sizeof(float);  // of a part of a panel

// sums[strip][16 rows][kAmxCols] = or += the products of strips of pixels and a panel of weights. `meanwhile`
// is called for each chunk of each tap.
template <int Parts, int Strips, int Vectors, class Meanwhile>
void multiply_windows(const Windows& w, const char* const* strip, const char* panel, float* sums, bool add,
                      Meanwhile& meanwhile) {
  constexpr int64_t kRow = kAmxCols * sizeof(float);
  const char* a[Strips];
  for (int s = 0; s < Strips; ++s) a[s] = strip[s];
  alignas(64) float chain[Strips * kAmxRows * kAmxCols];
  for (int64_t c = 0; c < w.chunks;) {
    unroll<Strips * Vectors>([&](auto i) { tile_zero<i>(); });
    for (const int64_t end = min_of(c + w.chain, w.chunks); c < end; ++c) {
      for (int64_t t = 0; t < w.taps; ++t) {
        meanwhile();
        const int64_t at = w.tap[t].copy + c * Parts * 64;
        const char* b = panel + w.tap[t].panel + c * Parts * kChunkBytes;
        unroll<kPartsProducts<Parts>>([&](auto n) {
          constexpr int kA = part_of_a<Parts>(n), kB = part_of_b<Parts>(n);
          constexpr bool kLoadA = Strips > 2 || kA != part_of_a<Parts>(n - 1);
          if constexpr (kB != part_of_b<Parts>(n - 1))
            unroll<Vectors>([&](auto v) { tile_load<6 + v>(b + kB * kChunkBytes + v * 64, kRow); });
          unroll<Strips>([&](auto s) {
            if constexpr (kLoadA) tile_load<4 + s % 2>(a[s] + at + kA * 64, w.pitch);
            unroll<Vectors>([&](auto v) { tile_multiply<s * Vectors + v, 4 + s % 2, 6 + v>(); });
          });
        });
      }
    }
    float* to = add ? chain : sums;
    unroll<Strips * Vectors>([&](auto i) {
      tile_store<i>(to + i / Vectors * kAmxRows * kAmxCols + i % Vectors * kAmxPairs, kRow);
    });
    for (int64_t i = 0; add && i < Strips * kAmxRows * kAmxCols; i += kAmxPairs)
      store(sums + i, load(sums + i) + load(chain + i));
    add = true;
  }
}

// The first `count` lanes of a vector.
template <class V>
CNNEXT_INLINE V first_lanes(V x, int64_t count) {
  constexpr int64_t kBytes = sizeof(V), kLane = sizeof(x[0]);
  alignas(64) static constexpr struct Mask {
    constexpr Mask() : bytes() {
      for (int i = 0; i < 64; ++i) bytes[i] = 0xff;
    }
    uint8_t bytes[128];
  } mask;
  return x & load_unaligned<V>(mask.bytes + kBytes - clamp(count * kLane, 0, kBytes));
}

// A chunk of numbers in their parts, 64 bytes each.
CNNEXT_INLINE void put_parts(const BFloat16* from, int64_t count, char* to) {
  store_unaligned(to, first_lanes(load_unaligned<WideShortVec>(from), count));
}
CNNEXT_INLINE UintVec nearest_bfloat16(Vec<float> x) {
  return (bit_cast<UintVec>(x) + 0x8000u) & 0xffff0000u;
}
CNNEXT_INLINE void put_parts(const float* from, int64_t count, char* to) {
  using Words = std::make_integer_sequence<int, 2 * kLanes<float>>;
  Vec<float> x = bit_cast<Vec<float>>(first_lanes(load_unaligned<UintVec>(from), count));
  Vec<float> y =
      bit_cast<Vec<float>>(first_lanes(load_unaligned<UintVec>(from + kAmxPairs), count - kAmxPairs));
#pragma GCC unroll 3
  for (int part = 0; part < 3; ++part) {
    const UintVec upper = nearest_bfloat16(x), lower = nearest_bfloat16(y);
    store_unaligned(to + part * 64, upper_halves(upper, lower, Words()));
    x -= bit_cast<Vec<float>>(upper);
    y -= bit_cast<Vec<float>>(lower);
  }
}
// Numbers in whole chunks, filled up with zeros. Memory is readable up to `end`.
template <class T>
CNNEXT_INLINE void put_numbers(const T* from, int64_t count, const T* end, char* to) {
  constexpr int64_t kBytes = kParts<T> * 64;
  for (; count > 0 && end - from >= kAmxDepth; count -= kAmxDepth, from += kAmxDepth, to += kBytes)
    put_parts(from, count, to);
  for (; count > 0; count -= kAmxDepth, from += kAmxDepth, to += kBytes) {
    alignas(64) T last[kAmxDepth] = {};
    __builtin_memcpy(last, from, min_of(count, kAmxDepth) * sizeof(T));
    put_parts(last, kAmxDepth, to);
  }
}

// Time that AMX takes over that of direct sums by AVX-512, for one image: the choice does not depend on the
// batch, so that an image's result does not either. Counted in products of AVX-512 for a pixel and a channel.
template <class T, bool Gradient>
double amx_time(const ConvProblem& p) {
  constexpr bool kFloat = kParts<T> > 1;
  constexpr double kProduct = kFloat ? 17 : 3, kCopy = kFloat ? 875 : 125, kPut = 10;  // of a chunk; of a sum
  constexpr double kPack = kFloat ? 44 : 12, kDirectPack = 10, kTurn = kFloat ? 60 : 40;
  const Phases phases(p, Gradient);
  double amx = 0, direct = 0;
  for (int64_t n = 0; n < phases.size(); ++n) {
    const Gather g = phases.at(n);
    if (g.depth() == 0 || g.pixels() == 0) continue;
    const AmxPlan<kParts<T>> plan(g, phases.source.pixel * int64_t(sizeof(T)), 1, 1, false);
    const double pixels = double(g.pixels() / g.images), K = double(phases.channels);
    const double copied = plan.in_place ? 0 : double(plan.positions()) / double(plan.lines * plan.width);
    const double each = kProduct * double(plan.units() * plan.chunks * round_up(phases.channels, kAmxPairs)) +
                        kCopy * copied * double(plan.chunks) + kPut * K;
    amx += pixels * each + kPack * double(g.depth()) * K;
    direct += (pixels + kDirectPack) * double(g.depth()) * K;
  }
  if (p.layout != Layout::kChannelsLast) {
    const ConvShape& s = p.shape;
    amx += kTurn * double(s.C_per_group() * s.input_pixels() + s.K_per_group() * s.output_pixels());
  }
  return direct > 0 ? amx / direct : 1.0;
}

// The same for direct sums as they are at their fastest: by AMX, by AVX512_BF16 or by products of float32.
template <bool Gradient>
double direct_time(const ConvProblem& p) {
  const double pairs = pairs_refuse<Gradient>(p) ? 1 : 0.5;
  if (!has_amx()) return pairs;
  const bool splits = p.dtype == DType::kFloat32;
  if (!splits && p.dtype != DType::kBFloat16) return pairs;
  const double amx = splits ? amx_time<float, Gradient>(p) : amx_time<BFloat16, Gradient>(p);
  return amx < pairs ? amx : pairs;
}
template <bool Gradient>
const char* rows_amx_refuses(const ConvProblem& p) {
  if (p.dtype != DType::kBFloat16 && p.dtype != DType::kFloat32) return "takes bfloat16 and float32";
  if (!has_amx()) return "this processor has no AMX";
  const double others = p.dtype == DType::kFloat32 ? 1 : 0.5;
  return direct_time<Gradient>(p) < others ? nullptr : "its copies would cost more than it saves";
}

}  // namespace cnnext::cpu::CNNEXT_ISA

#else

namespace cnnext::cpu::CNNEXT_ISA {
template <bool Gradient>
double direct_time(const ConvProblem& p) {
  return pairs_refuse<Gradient>(p) ? 1 : 0.5;
}
}  // namespace cnnext::cpu::CNNEXT_ISA

#endif  // AVX-512
