"""Pipelines in folders and on the Hub: export, load, push; Spaces.

Loading needs torch and diffusers, pushing what is there does not; so each is imported on first use.
"""

import importlib

_HOME_OF = {
    "EMBEDDED_MODEL": "loading",
    "as_stock": "export",
    "deploy_space": "space",
    "export_pipeline": "export",
    "fetch_newest_samples": "fetching",
    "load_allowed": "trusted",
    "load_pipeline": "loading",
    "public_name": "loading",
    "push": "publishing",
    "weights_name": "export",
}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
