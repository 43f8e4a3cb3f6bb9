"""What arguments of sources and models must be: numbers, folders, names on the hub."""

from pathlib import Path


def check_least(least: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} must be at least {least}, not {number}")


def check_folder(folder: Path, content: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: expected {content}")


def check_hub_name(name: str) -> None:
    """Raise if the name can only be a local folder, and is none."""
    if name.startswith(("/", "./", "../")):
        check_folder(Path(name), "what save_to_disk or save_pretrained wrote, or a name on the hub")
