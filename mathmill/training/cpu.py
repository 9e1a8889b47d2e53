"""megatron-core 0.16 on a CPU: what asks for a GPU there is answered here. For tests and tiny models; never used on GPUs.

Not a supported setting of megatron-core: schedules, rotary embedding, buffers and the optimizer ask for device "cuda" by
name. Each replacement below was needed by a run; everything else is done with supported settings (model.py).
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _CudaMeansCpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = torch.device("cpu")
        if func is torch.Tensor.to and len(args) > 1 and str(args[1]).startswith("cuda"):
            args = (args[0], "cpu", *args[2:])
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:  # the optimizer compares the name of a type
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **kwargs)


def use_cpu() -> None:
    """Once in a process, before megatron-core builds anything."""
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe import moe_utils

    nothing: Any = lambda *_, **__: None  # noqa: E731
    cuda: Any = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")
    cuda.synchronize = cuda.empty_cache = nothing
    of_tensors: Any = torch.Tensor
    of_tensors.cuda = lambda self, *_, **__: self
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()  # recomputation keeps the CPU's by itself
    random._set_cuda_rng_state = nothing
    if not hasattr(moe_utils, "te_general_gemm"):  # the router names it without having defined it
        moe_utils.te_general_gemm = None
    _CudaMeansCpu().__enter__()  # for as long as the process lives
