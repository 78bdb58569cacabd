// Depthwise convolution in channels last, by square kernels of the sizes that networks have: a thread slides
// down a strip of kColumns outputs of two channels and reads each input of the strip once. It keeps the
// weights, and what it knows of the outputs whose windows the row of inputs lies in, in registers: kSlots
// rows of outputs, which take turns. Sums in Acc<T>.
//
// Outputs of a strip are `dilation` apart, in rows and columns, so that any dilation shares what it reads.
// Neighbouring threads have neighbouring pairs of channels: `lanes` of them, then the next strip.
#pragma once

#include "conv_gather.cuh"
#include "conv_grad_weight.cuh"
#include "ptx.cuh"

namespace cnnext::cuda {

constexpr int kSlideThreads = 128, kSlideChannels = 2;

// For registers: columns of a strip, and blocks of a multiprocessor.
constexpr int slide_columns(int taps) { return taps > 5 ? 2 : 4; }
constexpr int slide_blocks(int taps, bool has_room) { return taps > 5 ? 2 : (taps > 3 ? 2 : 4) + has_room; }

// The strips of all images, numbered; in an image the columns are the fastest.
struct Slides {
  int rows, columns;  // outputs of a strip
  int dilation[2];
  int packs, lanes, per_block;  // packs of channels; of a block; strips of a block
  int64_t in_image;
  Divisor by_lanes, by_image, by_columns, by_dilation[2];

  // `tiles` of packs; strips of `of_strip` columns, at the dilations of h and w.
  Slides(int64_t images, int64_t packs, int64_t tiles, int64_t rows, int64_t columns, int of_strip, int64_t h,
         int64_t w)
      : columns(of_strip), dilation{int(h), int(w)}, packs(int(packs)), by_dilation{Divisor(h), Divisor(w)} {
    lanes = int(ceil_div(packs, tiles));
    per_block = kSlideThreads / lanes;
    by_lanes = Divisor(lanes);
    const int64_t in_row = ceil_div(columns, this->columns * w) * w;
    by_columns = Divisor(in_row);
    // Long strips read fewer rows twice, short ones are more: enough to fill a large GPU.
    int64_t cut = ceil_div(ceil_div(rows, h), 16);
    const auto length = [&] { return ceil_div(rows, h * cut); };
    while (length() > 4 && images * in_row * h * cut * packs < 100'000) cut *= 2;
    this->rows = int(length());
    in_image = in_row * h * ceil_div(rows, h * this->rows);
    by_image = Divisor(in_image);
  }
  int threads() const { return lanes * per_block; }
};
struct Slide {
  int64_t image;
  int row, column;  // of the first output

  // Strip number first + beyond; `image` and `in_image` are those of the first.
  CNNEXT_DEVICE Slide(const Slides& s, int64_t image, uint32_t in_image, int beyond) {
    uint32_t images = in_image + beyond, strip = split(images, s.by_image);
    this->image = image + images;
    uint32_t in_row = split(strip, s.by_columns);
    const int row_offset = split(strip, s.by_dilation[0]), column_offset = split(in_row, s.by_dilation[1]);
    row = int(strip) * s.rows * s.dilation[0] + row_offset;
    column = int(in_row) * s.columns * s.dilation[1] + column_offset;
  }
};

// kCount pixels of a row, which moves down a plane, to no more than `steps` rows.
template <class T, int kCount, int kPack = kSlideChannels>
struct SlidingRow {
  using Element = std::remove_const_t<T>;
  static constexpr int kWords = kPack * int(sizeof(T)) / 4;  // none of a single 16-bit element
  using Words = std::conditional_t<(kWords > 0), Pack<uint32_t, max_of(kWords, 1)>, Pack<Element, kPack>>;
  T* first;
  int64_t to_row;  // in elements
  int to_column, y, y_step, rows;
  uint32_t columns = 0;  // a bit for each pixel that is not in the padding

  // `columns` may be read of each `pitch` that there are.
  CNNEXT_DEVICE SlidingRow(T* plane, int top, int left, int steps, int y_step, int x_step, int rows,
                           int columns, int pitch, int64_t pixel)
      : y(top), y_step(y_step) {
    first = plane + (int64_t(top) * pitch + left) * pixel;
    to_row = int64_t(y_step) * pitch * pixel;
    to_column = int(x_step * pixel);
    this->rows = int(max_of(int64_t(0), min_of(int64_t(rows), top + int64_t(steps - 1) * y_step + 1)));
#pragma unroll
    for (int x = 0; x < kCount; ++x)
      this->columns |= (unsigned(left + x * x_step) < unsigned(columns) ? 1u : 0u) << x;
  }
  // Calls body(x, pixel, inside) for each; inside is a bit of its own, or 0.
  template <class Body>
  CNNEXT_DEVICE void each(const Body& body) const {
    const uint32_t inside = unsigned(y) < unsigned(rows) ? columns : 0;
    T* pixel = first;
#pragma unroll
    for (int x = 0; x < kCount; ++x, pixel += to_column) body(x, pixel, inside & 1u << x);
  }
  CNNEXT_DEVICE void load(Words (&to)[kCount]) const {
    each([&](int x, const T* pixel, uint32_t inside) {
      if constexpr (kWords > 0) {
        to[x] = ptx::load_or_zero(inside, reinterpret_cast<const Words*>(pixel));
      } else {
        to[x] = load_if<Element, kPack>(inside, pixel, {});
      }
    });
  }
  CNNEXT_DEVICE void move() {
    first += to_row;
    y += y_step;
  }
};
template <class T, class Words, int kPack>
CNNEXT_DEVICE void to_floats(const Words& words, Acc<T> (&to)[kPack]) {
  if constexpr (std::is_same_v<T, BFloat16> && kPack == 2) {  // an instruction each
    to[0] = ptx::as_float(words.at[0] << 16);
    to[1] = ptx::as_float(words.at[0] & 0xffff0000u);
  } else {
    Pack<T, kPack> values;
    memcpy(&values, &words, sizeof(values));
#pragma unroll
    for (int i = 0; i < kPack; ++i) to[i] = to_float(values.at[i]);
  }
}

template <int kTaps, int kStep>
struct SlideShape {
  static constexpr int kColumns = slide_columns(kTaps);
  static constexpr int kSlots = (kTaps + kStep - 1) / kStep;      // rows of outputs that share an input
  static constexpr int kInputs = (kColumns - 1) * kStep + kTaps;  // in a row
};

// Slides over the inputs of `rows` rows of outputs. Row j has slot j % kSlots: begin(slot) when its first
// inputs come, add(slot, column, r, s, value, i) for tap (r, s) and channel i of an output's window,
// end(slot) after the last. Rows before the first add too, and those after the last begin and add. An input
// of the next row is asked for when that of this row is taken.
template <class T, int kTaps, int kStep, class Begin, class Add, class End>
CNNEXT_DEVICE void slide(SlidingRow<const T, SlideShape<kTaps, kStep>::kInputs> inputs, int rows,
                         const Begin& begin, const Add& add, const End& end) {
  using Shape = SlideShape<kTaps, kStep>;
  constexpr int kSlots = Shape::kSlots, kInputs = Shape::kInputs;
  using Words = typename SlidingRow<const T, kInputs>::Words;
  Words next[kInputs];
  inputs.load(next);
  for (int j = 0; j < rows + kSlots - 1; j += kSlots) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      if (j + slot >= rows + kSlots - 1) return;
      begin(slot);
#pragma unroll
      for (int e = 0; e < kStep; ++e) {
        inputs.move();
        inputs.each([&](int x, const T* pixel, uint32_t inside) {
          Acc<T> values[kSlideChannels];
          to_floats<T>(next[x], values);
          next[x] = ptx::load_or_zero(inside, reinterpret_cast<const Words*>(pixel));
#pragma unroll
          for (int age = 0; age < kSlots; ++age) {
            const int r = age * kStep + e, of = (slot + kSlots - age) % kSlots;
#pragma unroll
            for (int column = 0; column < Shape::kColumns; ++column) {
              const int s = x - column * kStep;
              if (r >= kTaps || s < 0 || s >= kTaps) continue;
#pragma unroll
              for (int i = 0; i < kSlideChannels; ++i) add(of, column, r, s, values[i], i);
            }
          }
        });
      }
      if (j + slot >= kSlots - 1) end((slot + 1) % kSlots);
    }
  }
}

struct DepthwiseSlides {
  ConvGather g;
  Slides slides;
};

template <class T, int kTaps, int kStep>
CNNEXT_LAUNCH(kSlideThreads, slide_blocks(kTaps, kStep == 1))
conv_gather_depthwise_slide(DepthwiseSlides arguments) {
  using A = Acc<T>;
  using Shape = SlideShape<kTaps, kStep>;
  const ConvGather& g = arguments.g;
  const Slides& slides = arguments.slides;
  const Phase &h = g.phase[0].axis[1], &w = g.phase[0].axis[2];
  uint32_t strip_of_block = threadIdx.x;
  const int pair = blockIdx.y * slides.lanes + split(strip_of_block, slides.by_lanes);
  const int64_t first = int64_t(blockIdx.x) * slides.per_block;
  if (pair >= slides.packs || first + strip_of_block >= g.images * slides.in_image) return;
  const int64_t image = first / slides.in_image;
  const Slide strip(slides, image, uint32_t(first - image * slides.in_image), int(strip_of_block));
  const int channel = pair * kSlideChannels;

  A weights[kTaps][kTaps][kSlideChannels], bias[kSlideChannels],
      acc[Shape::kSlots][Shape::kColumns][kSlideChannels];
#pragma unroll
  for (int i = 0; i < kSlideChannels; ++i) {
    const T* weight = static_cast<const T*>(g.weight) + (channel + i) * g.weight_group +
                      g.phase[0].tap(g.kernel, 0, 0, 0) * g.weight_tap;
#pragma unroll
    for (int tap = 0; tap < kTaps * kTaps; ++tap, weight += w.tap_step * g.weight_tap)
      weights[tap / kTaps][tap % kTaps][i] = to_float(*weight);
    bias[i] = g.bias ? to_float(static_cast<const T*>(g.bias)[channel + i]) : A(0);
  }
  const T* source = static_cast<const T*>(g.source) + strip.image * g.source_strides.image + channel;
  T* destination = static_cast<T*>(g.destination) + strip.image * g.destination_strides.image + channel;
  const SlidingRow<const T, Shape::kInputs> inputs(
      source, h.source_index(strip.row, 0), w.source_index(strip.column, 0),
      (slides.rows - 1) * kStep + kTaps, h.offset_step, w.offset_step, h.source, w.source, w.source,
      g.source_strides.pixel);
  SlidingRow<T, Shape::kColumns> outputs(destination, strip.row, strip.column, slides.rows,
                                         slides.dilation[0], slides.dilation[1], h.count, w.count, w.count,
                                         g.destination_strides.pixel);
  const auto begin = [&](int slot) {
#pragma unroll
    for (int j = 0; j < Shape::kColumns; ++j) {
#pragma unroll
      for (int i = 0; i < kSlideChannels; ++i) acc[slot][j][i] = bias[i];
    }
  };
  const auto add = [&](int slot, int column, int r, int s, A value, int i) {
    acc[slot][column][i] += value * weights[r][s][i];
  };
  const auto end = [&](int slot) {
    outputs.each([&](int j, T* pixel, uint32_t inside) {
      Pack<T, kSlideChannels> result;
#pragma unroll
      for (int i = 0; i < kSlideChannels; ++i) convert(acc[slot][j][i], &result.at[i]);
      if (inside) store_pack(pixel, result);
    });
    outputs.move();
  };
  slide<T, kTaps, kStep>(inputs, slides.rows, begin, add, end);
}

struct DepthwiseGradWeightSlides {
  ConvGradWeight g;  // per_part counts strips
  Slides slides;
  int read[2];  // rows and columns of the input, up to the last that a window reads
};

// Grid: tiles of channels; 1; parts of the sum. The slots keep the gradients of the rows of outputs.
template <class T, int kTaps, int kStep>
CNNEXT_LAUNCH(kSlideThreads, sizeof(T) > 2 && kTaps == 3 ? 3 : slide_blocks(kTaps, false))
conv_grad_weight_depthwise_slide(DepthwiseGradWeightSlides arguments) {
  using A = Acc<T>;
  using Shape = SlideShape<kTaps, kStep>;
  const ConvGradWeight& g = arguments.g;
  const Slides& slides = arguments.slides;
  uint32_t strip_of_block = threadIdx.x;
  const int lane = split(strip_of_block, slides.by_lanes);
  const int channel = (blockIdx.x * slides.lanes + lane) * kSlideChannels;
  const int64_t first = blockIdx.z * g.per_part, image = first / slides.in_image;
  const int count = int(min_of(g.per_part, g.images * slides.in_image - first));

  A acc[kTaps][kTaps][kSlideChannels] = {};
  for (int at = strip_of_block; channel < g.groups && at < count; at += slides.per_block) {
    const Slide strip(slides, image, uint32_t(first - image * slides.in_image), at);
    const T* input = static_cast<const T*>(g.input) + strip.image * g.input_strides.image + channel;
    const T* grad_output =
        static_cast<const T*>(g.grad_output) + strip.image * g.output_strides.image + channel;
    const SlidingRow<const T, Shape::kInputs> inputs(
        input, strip.row * kStep - g.padding[1], strip.column * kStep - g.padding[2],
        (slides.rows - 1) * kStep + kTaps, g.dilation[1], g.dilation[2], arguments.read[0], arguments.read[1],
        g.input_extent[2], g.input_strides.pixel);
    SlidingRow<const T, Shape::kColumns> outputs(grad_output, strip.row, strip.column, slides.rows,
                                                 slides.dilation[0], slides.dilation[1], g.output[1],
                                                 g.output[2], g.output[2], g.output_strides.pixel);
    typename SlidingRow<const T, Shape::kColumns>::Words next[Shape::kColumns];
    outputs.load(next);
    A grads[Shape::kSlots][Shape::kColumns][kSlideChannels] = {};
    const auto begin = [&](int slot) {
#pragma unroll
      for (int j = 0; j < Shape::kColumns; ++j) to_floats<T>(next[j], grads[slot][j]);
      outputs.move();
      outputs.load(next);
    };
    const auto add = [&](int slot, int column, int r, int s, A value, int i) {
      acc[r][s][i] += grads[slot][column][i] * value;
    };
    slide<T, kTaps, kStep>(inputs, slides.rows, begin, add, [](int) {});
  }

  // A row of taps at a time; a thread adds what the strips of the block have for a weight.
  A* sums = shared_memory<A>();  // [kTaps * kSlideChannels][threads]
  const int threads = slides.lanes * slides.per_block;
#pragma unroll
  for (int r = 0; r < kTaps; ++r) {
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kTaps; ++s) {
#pragma unroll
      for (int i = 0; i < kSlideChannels; ++i)
        sums[(s * kSlideChannels + i) * threads + threadIdx.x] = acc[r][s][i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTaps * kSlideChannels * slides.lanes; i += threads) {
      uint32_t weight = i;
      const int of_lane = split(weight, slides.by_lanes);
      const int to = (blockIdx.x * slides.lanes + of_lane) * kSlideChannels + weight % kSlideChannels;
      if (to >= g.groups) continue;
      A sum = 0;
      for (int strip = 0; strip < slides.per_block; ++strip)
        sum += sums[weight * threads + strip * slides.lanes + of_lane];
      A* partial = static_cast<A*>(g.partial) + blockIdx.z * g.weights();
      partial[int64_t(to) * g.taps + r * kTaps + weight / kSlideChannels] = sum;
    }
  }
}

}  // namespace cnnext::cuda
