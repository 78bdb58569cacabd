"""The photograph that is benchmarked on: the astronaut that ships inside the scikit-image wheel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def photograph(count: int, size: int = 224, seed: int = 0) -> Tensor:
    """Crops of the photograph, resized and normalised as ImageNet's are.

    The first is ImageNet's evaluation crop (short side to ``size * 8 / 7``, centre); the others are different
    random crops, each covering 35 to 100 % of the picture's area, every second one mirrored.

    Args:
        count: number of crops, N.
        size: height and width of each in pixels.
        seed: chooses the random crops.

    Returns:
        float32 ``[count, 3, size, size]``.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """
    try:
        from skimage.data import astronaut
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the photograph is scikit-image's: pip install 'cnnext[bench]'") from error
    picture = torch.from_numpy(astronaut()).permute(2, 0, 1)[None].float() / 255
    picture = (picture - torch.tensor(_MEAN).view(1, 3, 1, 1)) / torch.tensor(_STD).view(1, 3, 1, 1)
    side = min(picture.shape[2:])

    def resized(top: int, left: int, extent: int) -> Tensor:
        crop = picture[:, :, top : top + extent, left : left + extent]
        return F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True, align_corners=False)

    extent = side * 7 // 8
    crops = [resized((picture.shape[2] - extent) // 2, (picture.shape[3] - extent) // 2, extent)]
    generator = torch.Generator().manual_seed(seed)
    for index in range(1, count):
        area, down, right = torch.rand(3, generator=generator).tolist()
        extent = int(side * (0.35 + 0.65 * area) ** 0.5)
        top, left = int(down * (picture.shape[2] - extent)), int(right * (picture.shape[3] - extent))
        crop = resized(top, left, extent)
        crops.append(crop.flip(3) if index % 2 else crop)
    return torch.cat(crops)[:count]
