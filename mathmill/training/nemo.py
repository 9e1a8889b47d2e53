"""The same recipe for a NeMo 2 container: rendered, never run here.

Every name and key below was read in the released package nemo_toolkit 2.7.3, the last with language models: nemo/lightning
(MegatronStrategy, MegatronMixedPrecision, Trainer, ModelCheckpoint, NeMoLogger, AutoResume), nemo/collections/llm/api.py
(import_ckpt, finetune), gpt/data/fine_tuning.py and gpt/data/core.py (FineTuningDataModule, GPTSFTDataset).
"""

import os
import sys
from pathlib import Path
from typing import Any

from mathmill.errors import UserError
from mathmill.training.options import TrainerOptions

MODELS = {"llama": "LlamaModel", "mistral": "MistralModel", "mixtral": "MixtralModel"}
NOT_THERE = {"packing": False, "train_on_code_output": True, "end_text": None}
"""What NeMo's own data set does, and cannot be asked to do otherwise by this kind."""


def nemo_settings(options: TrainerOptions, model_type: str, layout: tuple[int, int], steps: int) -> dict[str, Any]:
    """A NeMo class to the keyword arguments that it gets. `layout`: nodes, and processes on each."""
    for name, value in NOT_THERE.items():
        if getattr(options, name) != value:
            raise UserError(f"--trainer nemo does not know {name} {getattr(options, name)!r}; use --trainer megatron")
    save_every = options.save_every or steps
    return {
        **_model(options, model_type),
        **_loop(options, layout, steps, save_every),
        **_optimizer(options, steps),
        **_rows(options),
        **_checkpoints(options, save_every),
    }


def _model(options: TrainerOptions, model_type: str) -> dict[str, Any]:
    full = {"recompute_method": "uniform", "recompute_num_layers": 1} if options.recompute == "full" else {}
    return {
        "model": {
            "class": MODELS[model_type],
            "source": f"hf://{options.model}",
            "imported": str(Path(options.folder) / "nemo-model"),
        },
        "model_config": {
            "hidden_dropout": options.hidden_dropout,
            "attention_dropout": options.attention_dropout,
            "seq_length": options.context_length,
            "recompute_granularity": None if options.recompute == "none" else options.recompute,
            **full,
        },
    }


def _loop(options: TrainerOptions, layout: tuple[int, int], steps: int, save_every: int) -> dict[str, Any]:
    nodes, devices = layout
    return {
        "MegatronStrategy": {
            "tensor_model_parallel_size": options.tensor_parallel,
            "pipeline_model_parallel_size": options.pipeline_parallel,
            "expert_model_parallel_size": options.expert_parallel,
            "sequence_parallel": options.sequence_parallel,
            "ckpt_async_save": options.async_save,
        },
        "Trainer": {
            "accelerator": "gpu",
            "num_nodes": nodes,
            "devices": devices,
            "max_steps": steps,
            "val_check_interval": options.validate_every or save_every,
            "limit_val_batches": None if options.validation_data else 0,
            "log_every_n_steps": options.log_every,
            "use_distributed_sampler": False,
        },
        "MegatronMixedPrecision": {"precision": "bf16-mixed" if options.precision == "bf16" else "32"},
    }


def _optimizer(options: TrainerOptions, steps: int) -> dict[str, Any]:
    cosine = {
        "max_steps": steps,
        "warmup_steps": options.warmup_steps,
        "constant_steps": 0,
        "min_lr": options.min_learning_rate,
    }
    return {
        "OptimizerConfig": {
            "optimizer": "adam",
            "lr": options.learning_rate,
            "weight_decay": options.weight_decay,
            "adam_beta1": options.beta1,
            "adam_beta2": options.beta2,
            "clip_grad": options.clip_grad,
            "bf16": options.precision == "bf16",
            "use_distributed_optimizer": options.distributed_optimizer,
        },
        "CosineAnnealingScheduler": cosine if options.schedule == "cosine" else None,
    }


def _rows(options: TrainerOptions) -> dict[str, Any]:
    validation = options.validation_data or options.data
    return {
        "FineTuningDataModule": {
            "dataset_root": str(Path(options.folder) / "nemo-data"),
            "seq_length": options.context_length,
            "micro_batch_size": options.micro_batch,
            "global_batch_size": options.global_batch,
            "seed": options.seed,
            "dataset_kwargs": {
                "prompt_template": f"{{{options.input_field}}}{{{options.output_field}}}",
                "label_key": options.output_field,
                "truncation_field": options.input_field,
                "answer_only_loss": True,
                "add_bos": options.add_bos,
                "add_eos": True,
            },
        },
        "data": {"training.jsonl": options.data[0], "validation.jsonl": validation[0]},
    }


def _checkpoints(options: TrainerOptions, save_every: int) -> dict[str, Any]:
    folder = str(Path(options.folder) / "nemo")
    return {
        "ModelCheckpoint": {
            "every_n_train_steps": save_every,
            "save_top_k": -1,
            "monitor": "step",
            "mode": "max",
            "save_last": True,
            "save_optim_on_train_end": True,
        },
        "NeMoLogger": {"name": "nemo", "explicit_log_dir": folder, "use_datetime_version": False},
        "AutoResume": {"resume_if_exists": True, "resume_ignore_no_checkpoint": True},
    }


def main(settings: dict[str, Any]) -> None:
    """In the container, on every rank: import the model once, then fine-tune with NeMo's own loop."""
    from megatron.core.optimizer import OptimizerConfig
    from nemo import lightning as nl
    from nemo.collections import llm

    root = Path(settings["FineTuningDataModule"]["dataset_root"])
    model = getattr(llm, settings["model"]["class"])
    imported = Path(settings["model"]["imported"])
    if os.environ.get("RANK", "0") == "0":
        root.mkdir(parents=True, exist_ok=True)
        for name, source in settings["data"].items():
            (root / name).unlink(missing_ok=True)
            (root / name).symlink_to(source)
        if not (imported / "weights").exists():
            source = settings["model"]["source"]
            llm.import_ckpt(model(model.importer(source).config), source, output_path=imported, overwrite=True)
    _wait_for(imported / "weights")
    config = model.importer(settings["model"]["source"]).config
    for name, value in settings["model_config"].items():
        setattr(config, name, value)
    schedule = settings["CosineAnnealingScheduler"]
    llm.finetune(
        model=model(config),
        data=llm.FineTuningDataModule(**settings["FineTuningDataModule"]),
        trainer=nl.Trainer(
            **settings["Trainer"],
            strategy=nl.MegatronStrategy(**settings["MegatronStrategy"]),
            plugins=nl.MegatronMixedPrecision(**settings["MegatronMixedPrecision"]),
        ),
        log=nl.NeMoLogger(**settings["NeMoLogger"], ckpt=nl.ModelCheckpoint(**settings["ModelCheckpoint"])),
        resume=nl.AutoResume(**settings["AutoResume"], restore_config=nl.RestoreConfig(path=str(imported))),
        optim=nl.MegatronOptimizerModule(
            config=OptimizerConfig(**settings["OptimizerConfig"]),
            lr_scheduler=nl.lr_scheduler.CosineAnnealingScheduler(**schedule) if schedule else None,
        ),
        tokenizer="model",
    )


def _wait_for(path: Path) -> None:
    import time

    while not path.exists():
        time.sleep(5)


if __name__ == "__main__":
    from mathmill.options import ended_by, section

    ended_by(lambda: main(section(sys.argv[1], "nemo")))
