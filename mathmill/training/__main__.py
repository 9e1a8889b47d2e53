"""One rank of a training: torchrun … -m mathmill.training RUN/jobs/JOB.json"""

import os
import sys
import warnings
from pathlib import Path

from mathmill.parent import end_with


def main(path: str) -> int:
    """Train; a stop with work left is told to torchrun's side by a file, since torchrun calls every other code a failure."""
    warnings.simplefilter("ignore")  # megatron-core says at length what is not installed
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # megatron-core asks for it with sequence parallelism
    from mathmill.options import section
    from mathmill.training.loop import UNFINISHED, run
    from mathmill.training.options import trainer_options

    code = run(trainer_options(section(path, "trainer")), int(os.environ["LOCAL_RANK"]))
    if code == UNFINISHED and (note := os.environ.get("MATHMILL_UNFINISHED")):
        Path(note).touch()
        return 0
    return code


if __name__ == "__main__":
    if torchrun := os.environ.get("MATHMILL_TORCHRUN"):  # without it a rank would wait for ever for the others
        end_with(int(torchrun))
    import torch.distributed as dist

    from mathmill.options import ended_by

    def once() -> int:
        try:
            return main(sys.argv[1])
        finally:
            if dist.is_initialized() and sys.exc_info()[0] is None:
                dist.destroy_process_group()

    ended_by(once)
