// The arguments of every kernel that gathers: forward convolution, and the gradient for the input by phases.
//
// destination[n, d, start + j * step] = bias[d] + sum over taps m and channels s of
//   source[n, s, j * source_step + offset + m * offset_step] * weight(d, s, tap + m * tap_step)
// for each axis; geometry.h tells why both directions are of this form.
#pragma once

#include "device.cuh"

namespace cnnext::cuda {

struct Phase {  // geometry.h's PhaseAxis, in 32 bits
  int start, step, count, source, source_step, taps, tap, tap_step, offset, offset_step;
  Divisor by_count;

  CNNEXT_DEVICE int source_index(int j, int m) const { return j * source_step + offset + m * offset_step; }
};
struct PhaseAxes {
  Phase axis[kAxes];
  int pixels = 0;  // of one image
  Divisor by_pixels;

  // The number of the kernel's tap that taps (z, y, x) of the phase are.
  CNNEXT_DEVICE int tap(const int* kernel, int z, int y, int x) const {
    z = axis[0].tap + z * axis[0].tap_step;
    y = axis[1].tap + y * axis[1].tap_step;
    x = axis[2].tap + x * axis[2].tap_step;
    return (z * kernel[1] + y) * kernel[2] + x;
  }
};
constexpr int kMostPhases = 8;  // of one launch: arguments of a kernel are at most 4 KB

struct ConvGather {
  const void *source, *weight, *bias;
  void* destination;
  int64_t images;
  int groups, source_channels, destination_channels;  // channels of one group
  Strides source_strides, destination_strides;
  int64_t source_group;  // from one group's channels to the next's, in elements
  int64_t weight_group, weight_destination, weight_source, weight_tap;  // strides, in elements
  int kernel[kAxes], destination_extent[kAxes], source_extent[kAxes];
  int phases;
  PhaseAxes phase[kMostPhases];

  // The pixels of the phase in all images.
  CNNEXT_HOST_DEVICE int64_t rows(int p) const { return images * phase[p].pixels; }
};

// Row number first + `beyond` of a phase: its image, and the positions j of its axes. The division by 64 bits
// is done once for a block.
struct Row {
  int64_t image;
  int j[kAxes];

  // The source pixel that the row reads through taps (z, y, x) of the phase, by its number, or -1.
  CNNEXT_DEVICE int64_t source_pixel(const PhaseAxes& p, int z, int y, int x) const {
    z = p.axis[0].source_index(j[0], z);
    y = p.axis[1].source_index(j[1], y);
    x = p.axis[2].source_index(j[2], x);
    const bool inside = unsigned(z) < unsigned(p.axis[0].source) &&
                        unsigned(y) < unsigned(p.axis[1].source) && unsigned(x) < unsigned(p.axis[2].source);
    return inside ? (int64_t(z) * p.axis[1].source + y) * p.axis[2].source + x : -1;
  }
  CNNEXT_DEVICE int64_t destination_pixel(const PhaseAxes& p, const int* extent) const {
    int64_t pixel = 0;
    for (int a = 0; a < kAxes; ++a)
      pixel = pixel * extent[a] + p.axis[a].start + int64_t(j[a]) * p.axis[a].step;
    return pixel;
  }
};
struct Rows {
  const PhaseAxes& phase;
  int64_t image;
  uint32_t in_image;

  CNNEXT_DEVICE Rows(const PhaseAxes& phase, int64_t first) : phase(phase), image(first / phase.pixels) {
    in_image = uint32_t(first - image * phase.pixels);
  }
  CNNEXT_DEVICE Row operator[](int beyond) const {
    Row row;
    uint32_t images = in_image + beyond;
    uint32_t pixel = split(images, phase.by_pixels);
    row.image = image + images;
    row.j[2] = split(pixel, phase.axis[2].by_count);
    row.j[1] = split(pixel, phase.axis[1].by_count);
    row.j[0] = int(pixel);
    return row;
  }
};

inline Phase phase_of(const PhaseAxis& p) {
  return {int(p.start),
          int(p.step),
          int(p.count),
          int(p.source),
          int(p.source_step),
          int(p.taps),
          int(p.tap),
          int(p.tap_step),
          int(p.offset),
          int(p.offset_step),
          Divisor(max_of(1, p.count))};
}

// What one row reads through tap (0, 0, 0) of its phase: the position in the source, which may lie in the
// padding, and the distance to its first element. What a tap adds is the same for all rows.
struct SourceRow {
  int64_t distance;
  int at[kAxes];

  SourceRow() = default;
  CNNEXT_DEVICE explicit SourceRow(int64_t distance) : distance(distance), at{} {}
  CNNEXT_DEVICE SourceRow(const PhaseAxes& p, const Row& row, const Strides& strides) {
    distance = 0;
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      at[a] = p.axis[a].source_index(row.j[a], 0);
      distance = distance * p.axis[a].source + at[a];
    }
    distance = row.image * strides.image + distance * strides.pixel;
  }
  CNNEXT_DEVICE bool reaches(const PhaseAxes& p, const int (&added)[kAxes]) const {
    bool inside = true;
#pragma unroll
    for (int a = 0; a < kAxes; ++a) inside &= unsigned(at[a] + added[a]) < unsigned(p.axis[a].source);
    return inside;
  }
};

// Whether the rows of the only phase read all pixels of the source in order, each alone; and whether they are
// all pixels of the destination in order.
inline bool reads_in_order(const ConvGather& g) {
  bool all = g.phases == 1;
  for (const Phase& a : g.phase[0].axis) {
    all = all && a.taps == 1 && a.offset == 0 && a.source_step == 1 && a.count == a.source;
  }
  return all;
}
inline bool writes_in_order(const ConvGather& g) {
  bool all = g.phases == 1 && g.destination_strides.channel == 1;
  int64_t pixels = 1;
  for (int a = 0; a < kAxes; ++a) {
    all = all && g.phase[0].axis[a].step == 1 && g.phase[0].axis[a].count == g.destination_extent[a];
    pixels *= g.destination_extent[a];
  }
  return all && g.destination_strides.image == pixels * g.destination_strides.pixel;
}

// Calls run(arguments) for up to kMostPhases phases at a time. What no phase reaches is in none of them: an
// input's every residue is a phase, with taps or without.
template <class Run>
void for_each_phases(Direction direction, const ConvProblem& p, const ConvBuffers& b, Run&& run) {
  const ConvShape& s = p.shape;
  const bool forward = direction == Direction::kForward;
  const WeightStrides w = weight_strides_of(p.weight_layout, s.C_per_group(), s.taps());
  ConvGather g = {};
  g.source = forward ? b.input : b.output;
  g.destination = forward ? b.output : b.input;
  g.weight = b.weight;
  g.bias = b.bias;
  g.images = s.N;
  g.groups = int(s.groups);
  g.source_channels = int(forward ? s.C_per_group() : s.K_per_group());
  g.destination_channels = int(forward ? s.K_per_group() : s.C_per_group());
  const Strides input = strides_of(p.layout, s.C, s.input_pixels());
  const Strides output = strides_of(p.layout, s.K, s.output_pixels());
  g.source_strides = forward ? input : output;
  g.destination_strides = forward ? output : input;
  g.source_group = g.source_channels * g.source_strides.channel;
  g.weight_group = s.K_per_group() * w.k;
  g.weight_destination = forward ? w.k : w.c;
  g.weight_source = forward ? w.c : w.k;
  g.weight_tap = w.tap;
  int64_t phases[kAxes];
  for (int a = 0; a < kAxes; ++a) {
    const Window& window = s.axis[a];
    g.kernel[a] = int(window.kernel);
    g.source_extent[a] = int(forward ? window.input : window.output);
    g.destination_extent[a] = int(forward ? window.output : window.input);
    phases[a] = forward ? 1 : min_of(window.stride, window.input);
  }
  const int64_t all = phases[0] * phases[1] * phases[2];
  for (int64_t phase = 0; phase < all; ++phase) {
    const int64_t residue[kAxes] = {phase / (phases[1] * phases[2]), phase / phases[2] % phases[1],
                                    phase % phases[2]};
    PhaseAxes& at = g.phase[g.phases];
    at.pixels = 1;
    for (int a = 0; a < kAxes; ++a) {
      at.axis[a] = phase_of(forward ? forward_phase(s.axis[a]) : grad_input_phase(s.axis[a], residue[a]));
      at.pixels *= at.axis[a].count;
    }
    at.by_pixels = Divisor(max_of(1, at.pixels));
    if (++g.phases == kMostPhases || phase + 1 == all) {
      run(g);
      g.phases = 0;
    }
  }
}

// Calls run(arguments) for all groups, for so many at a time that a grid has a row for each of their tiles.
template <class T, class Run>
void for_each_groups(const ConvGather& all, int64_t tiles_of_group, Run&& run) {
  ConvGather g = all;
  const int64_t most = groups_at_once(tiles_of_group);
  for (int64_t first = 0; first < all.groups; first += most) {
    g.groups = int(min_of(most, all.groups - first));
    g.source = static_cast<const T*>(all.source) + first * g.source_group;
    g.weight = static_cast<const T*>(all.weight) + first * g.weight_group;
    const int64_t channel = first * g.destination_channels;
    if (all.bias) g.bias = static_cast<const T*>(all.bias) + channel;
    g.destination = static_cast<T*>(all.destination) + channel * g.destination_strides.channel;
    run(g);
  }
}

// Rows of the largest phase.
inline int64_t most_rows(const ConvGather& g) {
  int64_t most = 0;
  for (int i = 0; i < g.phases; ++i) most = max_of(most, g.rows(i));
  return most;
}

}  // namespace cnnext::cuda
