"""Small source packages that look like releases of diffusers and transformers: tables, classes, arguments, no code that works.

Importing one raises, so a test that passes has read them as text.
"""

from __future__ import annotations

from pathlib import Path

OLD_WAN = "prompt=None, negative_prompt=None, height=480, width=832, num_frames=81, num_inference_steps=50, guidance_scale=5.0, prompt_embeds=None, generator=None"
NEW_WAN = OLD_WAN.replace("guidance_scale=5.0", "guidance_scale=5.0, guidance_scale_2=None")

# What each release had: class -> (module of pipelines/wan, arguments of __init__, arguments of __call__).
RELEASES: dict[str, dict[str, tuple[str, str, str]]] = {
    "0.32.2": {},
    "0.33.1": {
        "WanPipeline": ("pipeline_wan", "tokenizer, text_encoder, transformer, vae, scheduler", OLD_WAN),
        "WanImageToVideoPipeline": ("pipeline_wan_i2v", "tokenizer, text_encoder, transformer", f"image, {OLD_WAN}"),
    },
    "0.35.0": {
        "WanPipeline": (
            "pipeline_wan",
            "tokenizer, text_encoder, vae, scheduler, transformer=None, transformer_2=None, boundary_ratio=None",
            NEW_WAN,
        ),
        "WanImageToVideoPipeline": (
            "pipeline_wan_i2v",
            "tokenizer, text_encoder, vae, scheduler",
            f"image, {NEW_WAN}, last_image=None",
        ),
        "WanVACEPipeline": ("pipeline_wan_vace", "tokenizer", f"{OLD_WAN}, video=None, mask=None"),
    },
}


def write_diffusers(site_packages: Path, version: str, *, metadata: bool = True) -> Path:
    """Write `diffusers` as it was in one of RELEASES; returns its folder."""
    classes = RELEASES[version]
    names = ", ".join(f'"{name}"' for name in classes)
    root = site_packages / "diffusers"
    guard = "raise RuntimeError('imported, not read')\n"
    _write(root / "__init__.py", guard, f'__version__ = "{version}"', "_import_structure = {'models': [], 'pipelines': []}",
           "try:\n    check()\nexcept Missing:\n    _import_structure['utils.dummy_objects'] = ['WanPipeline', 'OnlyADummy']\n"
           f"else:\n    _import_structure['pipelines'].extend([{names}])\n"
           "    _import_structure['models'].append('AutoencoderKLWan')")  # fmt: skip
    _write(root / "models" / "__init__.py", guard, "_import_structure = {}", "if available():",
           "    _import_structure['autoencoders.autoencoder_kl_wan'] = ['AutoencoderKLWan']")  # fmt: skip
    _write(root / "models" / "autoencoders" / "autoencoder_kl_wan.py", guard, "class AutoencoderKLWan:\n    pass")
    _write(root / "pipelines" / "__init__.py", guard, f"_import_structure = {{'wan': [{names}]}}")
    table = [f"_import_structure['{module}'] = ['{name}']" for name, (module, _, _) in classes.items()]
    _write(root / "pipelines" / "wan" / "__init__.py", guard, "_import_structure = {}", *table)
    for name, (module, init, call) in classes.items():
        _write(root / "pipelines" / "wan" / f"{module}.py", guard, f"class {name}(DiffusionPipeline):",
               f"    def __init__(self, {init}):\n        pass", f"    def __call__(self, {call}):\n        pass")  # fmt: skip
    if metadata:
        write_metadata(site_packages, "diffusers", version)
    return root


def write_transformers(site_packages: Path, version: str = "5.3.0") -> Path:
    """Write `transformers` with a table-less `models/` folder, as release 5 has it."""
    root = site_packages / "transformers"
    _write(
        root / "__init__.py",
        "raise RuntimeError('imported, not read')",
        "_import_structure = {'cache_utils': ['Cache']}",
    )
    _write(root / "cache_utils.py", "class Cache:\n    pass")
    _write(root / "models" / "umt5" / "__init__.py", "from .modeling_umt5 import *")
    _write(root / "models" / "umt5" / "modeling_umt5.py", "class UMT5EncoderModel:\n    pass")
    _write(root / "models" / "t5" / "tokenization_t5.py", "class T5Tokenizer:\n    pass")
    _write(root / "models" / "odd_name" / "modeling_odd_name.py", "class OtherModel:\n    pass")
    _write(root / "models" / "auto" / "modeling_auto.py", 'NAMES = [\n    ("odd-name", "OtherModel"),\n]')
    write_metadata(site_packages, "transformers", version)
    return root


def write_metadata(site_packages: Path, name: str, version: str) -> Path:
    folder = site_packages / f"{name}-{version}.dist-info"
    _write(folder / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def _write(path: Path, *parts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n")
