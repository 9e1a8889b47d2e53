"""The test Slurm is a real one: arrays, several nodes, states from the accounting, the pretend GPUs."""

from pathlib import Path

import pytest


def test_an_array_of_four_runs_on_several_nodes_and_the_accounting_tells_how_each_ended(slurm, workdir: Path):
    script = workdir / "array.sbatch"
    script.write_text(
        "#!/bin/bash\n"
        "#SBATCH --array=0-3 --cpus-per-task=16 --gpus-per-node=8 --output=%a.log\n"
        'echo "$(hostname) $CUDA_VISIBLE_DEVICES"; sleep 1\n'
        "exit $((SLURM_ARRAY_TASK_ID == 2 ? 7 : 0))\n"
    )
    job = slurm.call("sbatch", "--parsable", script).strip()

    states = slurm.states(job)

    assert states == {f"{job}_{task}": "FAILED" if task == 2 else "COMPLETED" for task in range(4)}
    logs = [(workdir / f"{task}.log").read_text().split() for task in range(4)]
    assert len({node for node, _ in logs}) > 1
    assert {gpus for _, gpus in logs} == {"0,1,2,3,4,5,6,7"}


def test_a_task_of_two_nodes_runs_one_process_on_each(slurm):
    hosts = slurm.call("srun", "--nodes=2", "--ntasks-per-node=1", "hostname").split()

    assert len(set(hosts)) == 2
    assert set(hosts) <= set(slurm.nodes)


def test_a_call_that_slurm_refuses_is_an_error_in_its_own_words(slurm, workdir: Path):
    with pytest.raises(RuntimeError, match="invalid partition"):
        slurm.call("sbatch", "--partition=moon", "--wrap=true")
