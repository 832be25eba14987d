"""A run's numbers sent to wandb or TensorBoard as well; neither is ever needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_log(service: str, folder: Path, config: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """A function that takes lines of the log.

    Args:
        service: `wandb` or `tensorboard`.
        folder: the run folder; its name names the run.

    Raises:
        ValueError: the service's package is not installed.
    """
    try:
        return {"wandb": _wandb, "tensorboard": _tensorboard}[service](folder, config)
    except ImportError as error:
        raise ValueError(f"--log-to {service} needs a package that is not installed: {error}") from None


def _wandb(folder: Path, config: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    import wandb

    try:
        run = wandb.init(project="sat_lens", name=folder.name, dir=str(folder), config=config, resume="allow")
    except getattr(wandb, "Error", OSError) as error:
        raise ValueError(f"wandb could not start: {error}") from None
    return lambda line: run.log(line, step=line["step"])


def _tensorboard(folder: Path, config: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))
    writer.add_text("config", str(config))

    def write(line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name != "step":
                writer.add_scalar(name, value, line["step"])

    return write
