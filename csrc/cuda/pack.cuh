// Images and weights as matrix products read them: in channels last, the channels of each group rounded up to
// whole chunks of 16 bytes, with zeros. From any layout and alignment.
//
// to[n][pixel][group][channel] = from[n, group * channels + channel, pixel]
#pragma once

#include "device.cuh"

namespace cnnext::cuda {

constexpr int kPackThreads = 256;

struct PackArguments {
  Strides from;
  int groups, channels;     // of one group
  int packs, group_packs;   // that a thread writes: of a pixel, and of a group in it
  int64_t pixels, threads;  // of an image
  bool channels_last;
  Divisor by_packs, by_group_packs, by_pixels;
  int64_t first_image;
};

// A thread writes kChunks chunks of one pixel: 32 bytes where it can, a sector of the cache. Neighbouring
// threads take neighbours in the memory that is read.
template <class T, int kChunks>
CNNEXT_LAUNCH(kPackThreads, 1)
pack(PackArguments a, const T* from, T* to) {
  constexpr int kEach = kPerVector<T>;
  const int64_t number = int64_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (number >= a.threads) return;
  uint32_t rest = uint32_t(number);
  const uint32_t first = split(rest, a.channels_last ? a.by_packs : a.by_pixels);
  const uint32_t pixel = a.channels_last ? rest : first, which = a.channels_last ? first : rest;
  uint32_t group = which;
  const int channel = split(group, a.by_group_packs) * kChunks * kEach;
  const int64_t image = a.first_image + blockIdx.y;
  from +=
      image * a.from.image + pixel * a.from.pixel + (int64_t(group) * a.channels + channel) * a.from.channel;
  to += ((image * a.pixels + pixel) * a.packs + which) * kChunks * kEach;
  Pack<T, kEach> chunks[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks * kEach; ++i) {
    chunks[i / kEach].at[i % kEach] =
        load_if<T, 1>(channel + i < a.channels, from + i * a.from.channel, {}).at[0];
  }
#pragma unroll
  for (int i = 0; i < kChunks; ++i) store_pack(to + i * kEach, chunks[i]);
}

// `padded`: the channels of a group in `to`.
template <class T>
void start_pack(const void* from, void* to, Layout layout, int64_t images, int64_t groups, int64_t channels,
                int64_t padded, int64_t pixels, const Stream& stream) {
  const auto start = [&](auto chunks) {
    constexpr int kChunks = decltype(chunks)::value;
    PackArguments a = {};
    a.from = strides_of(layout, groups * channels, pixels);
    a.groups = int(groups), a.channels = int(channels);
    a.group_packs = int(padded / (kChunks * kPerVector<T>));
    a.packs = a.group_packs * a.groups;
    a.pixels = pixels, a.threads = pixels * a.packs;
    a.channels_last = layout == Layout::kChannelsLast;
    a.by_packs = Divisor(a.packs), a.by_group_packs = Divisor(a.group_packs), a.by_pixels = Divisor(pixels);
    for (a.first_image = 0; a.first_image < images; a.first_image += kMostGridYZ) {
      const Grid grid = {ceil_div(a.threads, kPackThreads), min_of(kMostGridYZ, images - a.first_image)};
      launch(pack<T, kChunks>, grid, kPackThreads, 0, stream, a, static_cast<const T*>(from),
             static_cast<T*>(to));
    }
  };
  if (padded % (2 * kPerVector<T>) == 0) {
    start(std::integral_constant<int, 2>());
  } else {
    start(std::integral_constant<int, 1>());
  }
}

}  // namespace cnnext::cuda
