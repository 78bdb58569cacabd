// Dense convolution and its gradient with respect to the input by AMX: bfloat16, and float32 in three parts.
//
// A task is a block of pixels times some panels of channels. Its sums stay in registers for all of the depth,
// or, where that makes too large a copy of the source's rows (amx_blocks.h), for a slice of it. Each element
// is summed in the same order whatever the tasks and threads. Parts of float32 do not hold infinities: pixels
// whose sums are not finite are summed again as they are.
#pragma once

#include "amx_copy.h"
#include "amx_output.h"
#include "amx_weights.h"
#include "entry.h"
#include "packed_weights.h"
#include "scratch.h"

#if CNNEXT_VECTOR_BYTES == 64

namespace cnnext::cpu::CNNEXT_ISA {

template <class T, bool Planes>
struct ConvAmx {
  static constexpr int kP = kParts<T>;
  static constexpr int64_t kWide = kAmxCols;
  using Plan = AmxPlan<kP>;
  using Task = AmxTask<kP>;

  ConvAmx(const ConvProblem& p, bool gradient, const ConvBuffers& b, char* workspace)
      : phases(p, gradient),
        threads(p.threads),
        panels(ceil_div(phases.channels, kWide)),
        operands(operands_of<T>(b, gradient)),
        source_end(operands.source + p.shape.N * phases.source.image) {
    // Few pixels are one block, if the threads can share the channels alike.
    int64_t pixels = 0;
    for (int64_t n = 0; n < phases.size(); ++n) pixels = max_of(pixels, phases.at(n).pixels());
    one = pixels <= kAmxPixels &&
          (phases.shape.groups % threads == 0 || 17 * panels >= 16 * round_up(panels, threads));
    struct {
      int64_t chunks, slice, taps, run, places, strips, copy_bytes, turned;
    } most = {};  // of any phase
    bool sliced = false;
    for (int64_t n = 0; n < phases.size(); ++n) {
      const Plan plan = plan_of(phases.at(n));
      const auto raise = [](int64_t& most, int64_t value) { most = max_of(most, value); };
      raise(blocks, plan.blocks());
      raise(most.chunks, plan.units() * plan.chunks);
      raise(most.slice, plan.units() * plan.slice);
      raise(most.taps, plan.units());
      raise(most.run, plan.run);
      raise(most.places, plan.places());
      raise(most.strips, plan.strips());
      raise(most.copy_bytes, plan.copy_bytes());
      raise(most.turned, AmxCopy<T>::scratch_size(plan));
      sliced |= plan.slice < plan.chunks;
    }
    panels_each = sliced ? clamp(kAmxBytes / (most.strips * kStripSums * 4), 1, panels) : panels;
    const int64_t tasks = phases.total_slots() * phases.shape.groups * blocks;  // that have taps
    if (leave_idle(tasks, threads))
      panels_each = min_of(panels_each, ceil_div(panels, blocks_for(threads, tasks, panels)));
    channel_blocks = ceil_div(panels, panels_each);
    packs_in_task = blocks == 1 && !p.keeps_weight;
    const int64_t unit = (packs_in_task ? most.slice : most.chunks) * kP * kChunkBytes / 4;
    packed = PackedWeights<float>(p, packs_in_task ? 0 : phases.total_slots() * phases.shape.groups * panels,
                                  unit);
    ScratchLayout memory{packed.place(b, workspace)};
    scratch.copy = memory.take_each<char>(threads, most.copy_bytes);
    // Two buffers of four strips, where a phase is not cut into slices; others may be.
    const int64_t buffers = max_of(8, sliced ? panels_each * most.strips : 0);
    scratch.sums = memory.take_each<float>(threads, buffers * kStripSums);
    scratch.panel = memory.take_each<float>(threads, packs_in_task ? unit : 0);
    const bool all_columns = kP > 1 || !depth_in_parts(phases);
    scratch.columns = memory.take_each<float>(threads, (all_columns ? phases.max_depth() : most.run) * kWide);
    scratch.numbers =
        memory.take_each<float>(threads, max_of(phases.max_depth(), most.turned) + kLanes<float>);
    scratch.inside = memory.take_each<Inside>(threads, most.taps);
    scratch.taps = memory.take_each<Tap>(threads, 2 * most.taps);
    scratch.places = memory.take_each<int64_t>(threads, most.places);
    scratch.strips = memory.take_each<Strip>(threads, most.strips);
    scratch.rows = memory.take_each<int64_t>(threads, most.strips * kAmxRows);
    scratch.runs = memory.take_each<PixelRuns>(threads, Planes ? most.strips : 0);
    scratch.bytes = memory.bytes;
  }

  int64_t workspace_bytes() const { return packed.bytes() + scratch.bytes; }
  int64_t packed_bytes() const { return packed.kept_bytes(); }

  Plan plan_of(const Gather& g) const {
    return Plan(g, phases.source.pixel * int64_t(sizeof(T)), phases.size() * phases.shape.groups, threads,
                one);
  }

  void run(const Parallel& parallel) const {
    const int64_t groups = phases.shape.groups;
    packed.start(parallel, pack_unit());
    parallel(phases.size() * groups * channel_blocks * blocks, [&](int64_t task, int thread) {
      Task t = {plan_of(phases.at(task % phases.size())), thread};
      task /= phases.size();
      t.group = task % groups;
      task /= groups;
      t.panels = block(task % channel_blocks, panels_each, panels);
      task /= channel_blocks;
      const Plan& plan = t.plan;
      if (task >= plan.blocks()) return;
      t.columns = block(task % plan.pieces, plan.width, plan.g.axis[2].count);
      task /= plan.pieces;
      t.lines = block(task % plan.line_blocks, plan.lines, plan.g.axis[1].count);
      t.planes = block(task / plan.line_blocks, plan.planes, plan.g.images * plan.g.axis[0].count);
      if (t.pixels() > 0) compute(t);
    });
  }

  // Sums the pixels of strips once more where some are not finite.
  struct SumAgain {
    const ConvAmx& conv;
    const Task& task;
    void operator()(const StripSums& strips, const float* add) const { conv.sum_again(task, strips, add); }
  };
  using Output = AmxOutput<T, Planes, SumAgain>;

  // A task's pixels, in strips, and where its operands and its sums are.
  struct Work {
    const Task& task;
    Output& output;
    Strip* strip;
    int64_t strips;
    int64_t* rows;  // of the destination, kAmxRows for a strip
    PixelRuns* runs;
    Inside* inside;
    Tap* taps;
    const char* copy;
    int64_t pitch;
    float* sums;
    bool sliced;         // sums of all strips wait for the next slice
    int64_t number = 0;  // of the buffer of sums, if not
  };

  void compute(const Task& t) const {
    const Plan& plan = t.plan;
    int64_t* places = scratch.places[t.thread];
    const int64_t count = t.place_pixels(phases.destination, places);
    if (plan.units() == 0) return fill_pixels(t, places, count);

    const T* from = operands.source + t.group * plan.g.channels * phases.source.channel;
    Inside* inside = scratch.inside[t.thread];
    for (int64_t m = 0; m < plan.units(); ++m) inside[m] = t.inside(m);
    const int64_t line = plan.line(t.planes.size(), t.lines.size(), t.columns.size());
    const int64_t height = ceil_div(line, ceil_div(line, kAmxRows));
    Strip* strip = scratch.strips[t.thread];
    const int64_t strips = t.find_strips(count, line, height, inside, strip);
    int64_t* rows = scratch.rows[t.thread];
    for (int64_t s = 0; s < strips; ++s) {
      for (int64_t r = 0; r < kAmxRows; ++r)
        rows[s * kAmxRows + r] = r < height ? places[strip[s].place + r] : -1;
    }
    PixelRuns* runs = scratch.runs[t.thread];
    for (int64_t s = 0; s < strips && Planes; ++s)
      runs[s] = PixelRuns(rows + s * kAmxRows, plan.g.axis[2].step);

    const TileRegisters registers{uint8_t(height)};
    Output output(operands.destination, phases.destination.channel, operands.bias, {*this, t});
    char* copy = scratch.copy[t.thread];
    Work work = {t,
                 output,
                 strip,
                 strips,
                 rows,
                 runs,
                 inside,
                 scratch.taps[t.thread],
                 copy,
                 plan.pitch(),
                 scratch.sums[t.thread],
                 plan.slice < plan.chunks};
    if (plan.in_place) {
      const int64_t first = t.planes.begin * plan.g.axis[1].count * plan.g.axis[2].count + t.columns.begin;
      work.copy = reinterpret_cast<const char*>(from + first * phases.source.pixel);
      work.pitch = phases.source.pixel * int64_t(sizeof(T));
    }
    const AmxCopy<T> copies{phases.source, source_end, reinterpret_cast<T*>(scratch.numbers[t.thread])};
    for (Range slice = {0, 0}; slice.begin < plan.chunks; slice.begin = slice.end) {
      slice.end = min_of(slice.begin + plan.slice, plan.chunks);
      if (!plan.in_place) copies.rows(t, slice, from, copy);
      multiply_slice(work, slice);
    }
    output.end();
  }

  void multiply_slice(Work& work, Range slice) const {
    const Task& t = work.task;
    const Plan& plan = t.plan;
    packs_in_task ? t.find_taps(0, slice.size(), work.pitch, work.taps)
                  : t.find_taps(slice.begin, plan.chunks, work.pitch, work.taps);
    // Few weights are read for each two strips, whose pixels are then written with all of their channels.
    const int64_t weight_bytes = t.panels.size() * plan.units() * plan.chunks * kP * kChunkBytes;
    if (!work.sliced && !packs_in_task && !Planes && weight_bytes <= kAmxNear) {
      for (int64_t s = 0; s < work.strips; s += 2) {
        for (int64_t panel = t.panels.begin; panel < t.panels.end; ++panel)
          multiply(work, slice, panel, panel_of(t, panel, slice), {s, min_of(s + 2, work.strips)});
      }
      return;
    }
    for (int64_t panel = t.panels.begin; panel < t.panels.end; ++panel) {
      const float* columns = panel_of(t, panel, slice);
      if (packs_in_task) work.output.weights = weights_after(work, panel, slice);
      const bool narrow = phases.channels - panel * kWide <= kAmxPairs;
      for (Range strips = {0, 0}; strips.begin < work.strips; strips.begin = strips.end) {
        const int64_t left = work.strips - strips.begin;
        strips.end = strips.begin + (narrow && left >= 4 ? 4 : min_of(2, left));
        multiply(work, slice, panel, columns, strips);
      }
    }
  }

  // What is packed after a panel, fetched while that is multiplied: in a network weights come from memory.
  FetchedRows weights_after(const Work& work, int64_t panel, Range slice) const {
    const Task& t = work.task;
    const Plan& plan = t.plan;
    const int64_t steps = ceil_div(work.strips, 2) * slice.size() * plan.units();
    if (++panel == t.panels.end) {
      panel = t.panels.begin;
      slice = {slice.end, min_of(slice.end + plan.slice, plan.chunks)};
    }
    return AmxWeights<T>{phases, operands.weight}.ahead(plan, t.group, block(panel, kWide, phases.channels),
                                                        slice, steps);
  }

  // One, two or four strips times a panel.
  void multiply(Work& work, Range slice, int64_t panel, const float* columns, Range strips) const {
    const Task& t = work.task;
    const Plan& plan = t.plan;
    const Range channels = block(panel, kWide, phases.channels);
    const bool narrow = channels.size() <= kAmxPairs;
    const auto run =
        strips.size() == 4 ? &multiply_windows<kP, 4, 1, Output>
        : strips.size() == 1
            ? (narrow ? &multiply_windows<kP, 1, 1, Output> : &multiply_windows<kP, 1, 2, Output>)
            : (narrow ? &multiply_windows<kP, 2, 1, Output> : &multiply_windows<kP, 2, 2, Output>);
    const int64_t at =
        work.sliced ? (panel - t.panels.begin) * work.strips + strips.begin : 4 * (work.number++ % 2);
    float* sums = work.sums + at * kStripSums;
    const Strip* strip = work.strip + strips.begin;
    const char* copies[4] = {};
    bool all_inside = true;
    for (int64_t n = 0; n < strips.size(); ++n) {
      copies[n] = work.copy + strip[n].copy * work.pitch;
      all_inside &= strip[n].inside;
    }
    Windows w = {work.taps, plan.units(), slice.size(), work.pitch, plan.chain()};
    if (!all_inside) w = used_taps(w, work.inside, strip, strips.size(), work.taps + w.taps);
    if (slice.end == plan.chunks) {
      const int64_t* to = work.rows + strips.begin * kAmxRows;
      work.output.begin({strip, to, to + strips.size() * kAmxRows, work.runs + strips.begin, sums,
                         t.group * phases.channels + channels.begin, channels.size()},
                        w.chunks * w.taps);
    }
    run(w, copies, reinterpret_cast<const char*>(columns), sums, slice.begin > 0, work.output);
    work.output.end();
  }

  // Pixels that no tap reaches.
  void fill_pixels(const Task& t, const int64_t* places, int64_t count) const {
    for (int64_t panel = t.panels.begin; panel < t.panels.end; ++panel) {
      const Range channels = block(panel, kWide, phases.channels);
      const int64_t first = t.group * phases.channels + channels.begin;
      alignas(64) float add[kWide] = {}, zero[kWide] = {};
      if (operands.bias) copy_run(operands.bias + first, add, channels.size());
      Vec<float> not_finite = {};
      for (int64_t i = 0; i < count; ++i) {
        if (places[i] >= 0) put(zero, add, channels.size(), first, places[i], not_finite);
      }
    }
  }

  // Weights: panels of kWide channels, [tap][chunk][part][pair][kWide].
  auto pack_unit() const {
    return [this](int64_t unit, float* to, int thread) {
      const int64_t group = unit / panels % phases.shape.groups;
      const Plan plan = plan_of(phases.of_slot(unit / panels / phases.shape.groups));
      pack_panel(plan, group, unit % panels, {0, plan.chunks}, to, scratch.columns[thread]);
    };
  }
  const float* panel_of(const Task& t, int64_t panel, Range slice) const {
    if (packs_in_task) {
      float* to = scratch.panel[t.thread];
      pack_panel(t.plan, t.group, panel, slice, to, scratch.columns[t.thread]);
      return to;
    }
    return packed.get((phases.slot(t.plan.g) * phases.shape.groups + t.group) * panels + panel, t.thread,
                      pack_unit());
  }
  void pack_panel(const Plan& plan, int64_t group, int64_t panel, Range slice, float* to,
                  float* columns) const {
    AmxWeights<T>{phases, operands.weight}.pack(plan, group, block(panel, kWide, phases.channels), slice, to,
                                                columns);
  }

  // A pixel to its place.
  void put(const float* sums, const float* add, int64_t count, int64_t channel, int64_t place,
           Vec<float>& not_finite) const {
    if (!Planes) return put_row(sums, add, count, operands.destination + place + channel, not_finite);
    for (int64_t k = 0; k < count; ++k)
      store_one(operands.destination + place + (channel + k) * phases.destination.channel, sums[k] + add[k]);
  }

  // Pixels whose sums are not finite, without parts. That of infinity and zero is NaN, and so would be that
  // of infinity and a number with a part that is zero.
  void sum_again(const Task& t, const StripSums& rows, const float* add) const {
    const Gather& g = t.plan.g;
    float *columns = scratch.columns[t.thread], *numbers = scratch.numbers[t.thread];
    const int64_t row = t.plan.columns(t.columns.size()).length;
    const int64_t line = t.plan.line(t.planes.size(), t.lines.size(), t.columns.size());
    const int64_t first = rows.channel - t.group * phases.channels;
    const T* from = operands.source + t.group * g.channels * phases.source.channel;
    pack_weight_panel(phases, g, operands.weight, t.group, {first, first + rows.channels}, {0, g.depth()},
                      columns);
    for (int64_t i = 0; i < rows.end - rows.to; ++i) {
      if (rows.to[i] < 0) continue;
      alignas(64) float again[kWide], zero[kWide] = {};
      Vec<float> not_finite = {};
      put_row(rows.sums + i * kWide, add, kWide, again, not_finite);
      if (!any_nan(not_finite)) continue;
      const int64_t place = rows.strip[i / kAmxRows].place + i % kAmxRows;
      const int64_t at = place % line, plane = t.planes.begin + place / line;
      const int64_t pixel =
          (plane * g.axis[1].count + t.lines.begin + at / row) * g.axis[2].count + t.columns.begin + at % row;
      const Range one_pixel = {pixel, pixel + 1}, depth = {0, g.depth()};
      if (phases.source.channel == 1) {
        pack_pixels(from, phases.source, g, one_pixel, depth, numbers, 0);
      } else {
        pack_columns(from, phases.source, g, one_pixel, depth, taps_outside(g), numbers, 1);
      }
      Vec<float> sum[2] = {load(add), load(add + kAmxPairs)};
      for (int64_t d = 0; d < g.depth(); ++d) {
        for (int v = 0; v < 2; ++v)
          sum[v] += broadcast(numbers[d]) * load(columns + d * kWide + v * kAmxPairs);
      }
      for (int v = 0; v < 2; ++v) store(again + v * kAmxPairs, sum[v]);
      put(again, zero, rows.channels, rows.channel, rows.to[i], not_finite);
    }
  }

  static constexpr int64_t kStripSums = kAmxRows * kWide;

  Phases phases;
  int64_t threads, panels;
  Operands<T> operands;
  const T* source_end;
  bool one = false, packs_in_task = false;
  int64_t blocks = 1, panels_each = 1, channel_blocks = 1;  // tasks of a phase and a group
  PackedWeights<float> packed;
  struct {
    PerThread<char> copy;
    PerThread<float> sums, panel, columns, numbers;
    PerThread<Inside> inside;
    PerThread<Tap> taps;  // two lists
    PerThread<int64_t> places, rows;
    PerThread<Strip> strips;
    PerThread<PixelRuns> runs;
    int64_t bytes;
  } scratch;
};

template <bool Gradient>
struct RowsAmxClasses {
  template <class Visit>
  static void with(const ConvProblem& p, const ConvBuffers& b, char* workspace, Visit&& visit) {
    const auto by_layout = [&](auto* type) {
      using T = Pointee<decltype(type)>;
      p.layout == Layout::kChannelsLast ? visit(ConvAmx<T, false>(p, Gradient, b, workspace))
                                        : visit(ConvAmx<T, true>(p, Gradient, b, workspace));
    };
    p.dtype == DType::kFloat32 ? by_layout(static_cast<float*>(nullptr))
                               : by_layout(static_cast<BFloat16*>(nullptr));
  }
};

template <bool Gradient>
const char* rows_amx_refuses(const ConvProblem& p);  // conv_choice.h
template <bool Gradient>
constexpr ConvKernel kConvRowsAmx =
    entry<RowsAmxClasses<Gradient>>("rows_amx", "rows of pixels, multiplied by AMX",
                                    rows_amx_refuses<Gradient>, packed_of<RowsAmxClasses<Gradient>>);

}  // namespace cnnext::cpu::CNNEXT_ISA

#endif  // AVX-512
