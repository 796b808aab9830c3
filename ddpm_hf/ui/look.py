"""How the page looks: the theme's colours, the style sheets, and what else the launch needs to know."""

import importlib.util
from pathlib import Path

import gradio as gr

from ddpm_hf.ui.intake import MAX_FILE_BYTES

STATIC = Path(__file__).parent / "static"

# in this order one style sheet and one script, whose functions see each other
STYLES = ("page", "form", "stage", "compare", "forward", "theory", "takeaway")
SCRIPTS = (
    *("dom", "wire", "film", "tiles", "transport", "lens", "stage", "choice", "fields", "form", "compare", "charts"),
    *("intake", "forward", "math", "theory", "takeaway", "tabs", "masthead", "main"),
)

# nothing is fetched from elsewhere: the fonts are the visitor's own
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

# (light, dark) by the theme's name; the style sheets use the same variables
COLORS = {
    "body_background_fill": ("#f4f1ea", "#0c0b0a"),
    "body_text_color": ("#211f1b", "#f2efe9"),
    "body_text_color_subdued": ("#655f55", "#a7a39b"),
    "background_fill_primary": ("#fffdf8", "#1c1b19"),
    "background_fill_secondary": ("#f0ebe0", "#262421"),
    "border_color_primary": ("#ddd6c8", "#34322e"),
    "border_color_accent": ("#c43d12", "#ff7a4d"),
    "block_background_fill": ("transparent", "transparent"),
    "block_title_text_color": ("#211f1b", "#f2efe9"),
    "input_background_fill": ("#f4f0e7", "#121110"),
    "input_border_color": ("#c9c1b0", "#45423c"),
    "input_border_color_focus": ("#c43d12", "#ff7a4d"),
    "slider_color": ("#c43d12", "#ff7a4d"),
    "button_primary_background_fill": ("#c43d12", "#ff7a4d"),
    "button_primary_background_fill_hover": ("#a8320c", "#ff9470"),
    "button_primary_border_color": ("#c43d12", "#ff7a4d"),
    "button_primary_border_color_hover": ("#a8320c", "#ff9470"),
    "button_primary_text_color": ("#ffffff", "#1a0c06"),
    "button_secondary_background_fill": ("#ece6d9", "#2b2926"),
    "button_secondary_background_fill_hover": ("#e0d8c7", "#3a3733"),
    "button_secondary_text_color": ("#211f1b", "#f2efe9"),
}
SIZES = {
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_shadow": "none",
    "block_title_text_weight": "600",
    "block_title_text_size": "14px",
    "input_border_width": "1px",
    "button_large_text_size": "16px",
    "button_large_text_weight": "600",
    "button_large_radius": "12px",
}


def theme() -> gr.themes.Base:
    """The theme, light and dark."""
    values = dict(SIZES)
    for name, (light, dark) in COLORS.items():
        values |= {name: light, f"{name}_dark": dark}
    return gr.themes.Base(font=FONT, font_mono=MONO).set(**values)


def launch_options() -> dict:
    """How ``Blocks.launch`` is to show the page, and what it may give away."""
    return {
        "theme": theme(),
        "head": _head(),
        "max_file_size": MAX_FILE_BYTES,
        "state_session_capacity": 500,  # Gradio keeps 10,000
        "show_error": False,  # Gradio would show a stranger paths of the server
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": importlib.util.find_spec("mcp") is not None,  # the endpoints as tools, where its package is
        "footer_links": ["api", "gradio"],
    }


def _head() -> str:
    """The style sheets and the scripts, each as one tag: as they are, for ``css=`` would be rewritten."""
    first, *rest = ((STATIC / f"{name}.css").read_text() for name in STYLES)
    # nested, so that the parts' rules are stronger than those that Gradio has for every button and input
    css = f"{first}\n.gradio-container {{\n{''.join(rest)}\n}}"
    script = "\n".join((STATIC / f"{name}.js").read_text() for name in SCRIPTS)
    return f'<style>{css}</style><script>"use strict";\n{{\n{script}\n}}</script>'
