"""What a reader needs to know about the machine to trust a figure."""

from __future__ import annotations

import datetime
import os
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# glibc maps every large block afresh and gives it back when freed, so that a kernel with a large output mostly
# times the kernel's page faults. This keeps blocks and asks for huge pages: then kernels are what is compared.
FIXED_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

# Every block of 64 KiB and more gets a mapping of its own and leaves memory the moment it is freed, so that resident
# memory is what is in use. For measuring memory, not time.
MAPPED_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(64 << 10), "MALLOC_TRIM_THRESHOLD_": "0", "GLIBC_TUNABLES": ""}


def allocator_variables() -> dict[str, str]:
    """The environment variables that change how memory is allocated, as this process got them."""
    names = sorted(name for name in os.environ if name.startswith("MALLOC_"))
    names += [name for name in ("GLIBC_TUNABLES", "LD_PRELOAD") if name in os.environ]
    return {name: os.environ[name] for name in names}


def facts(device: torch.device | None = None) -> dict[str, Any]:
    """Versions, processor, threads, instruction sets, allocator and date of this process, and the GPU that is used."""
    import torch

    import cnnext
    from cnnext._info import _cpu_model
    from cnnext._options import cpus

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "gpu": torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else None,
        "cpus": cpus(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "cnnext": cnnext.__version__,
        "cnnext_capability": cnnext._C.cpu_capability(),
        "cnnext_build": dict(cnnext._build_info),
        "allocator": allocator_variables(),
    }
