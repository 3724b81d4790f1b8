"""How the page looks, and what Gradio's parts lack for those who do not see it or see it on a phone."""

from __future__ import annotations

from typing import Any

import gradio as gr

__all__ = ["LOOKS"]

# Fonts of the machine: Gradio's own themes ask another server for theirs. White on its orange, and its light grey on
# white, have less than the contrast of 4.5 to 1 that text needs; this is the teal of the documentation.
_THEME = gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
    color_accent="*primary_700",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
    button_primary_border_color="*primary_700",
)

_CSS = """
.wide td, .wide th { white-space: nowrap }
footer { display: none !important }
#problem { border-left: 4px solid #b45309; padding: 4px 12px }
.hint { font-size: 0.85em }
.hint *, .info-text, .file-preview *, .or { color: var(--body-text-color) !important }
input[role=combobox] { text-overflow: ellipsis; margin-right: 1.5em !important } /* a long name ends before the arrow */
.dark button[role=tab].selected { color: #5eead4 }
/* Pictures in three columns, in two on a phone; the whole name of each below it, not cut off over it. */
.pictures .grid-container { grid-template-columns: repeat(auto-fill, minmax(max(8rem, 30%), 1fr)) !important }
.pictures .grid-wrap { min-height: 0 !important; max-height: none !important }
.pictures .thumbnail-item { display: block; width: 100%; height: auto; aspect-ratio: auto }
.pictures .thumbnail-item img { height: auto; aspect-ratio: 1 }
.pictures .caption-label { position: static; max-width: none; border: 0; white-space: normal; overflow-wrap: anywhere }
"""

# Gradio gives some of its parts no name or another one than is seen; a picture that is loaded when it is scrolled to
# stays blank on paper and in a picture of the page.
_SCRIPT = """() => {
  const named = (button, name) => { if (name && button.ariaLabel !== name) button.ariaLabel = name; };
  const mend = () => {
    for (const picture of document.querySelectorAll('img[loading=lazy]')) picture.loading = 'eager';
    for (const part of document.querySelectorAll('div.empty[aria-label]:not([role])')) part.setAttribute('role', 'img');
    for (const upload of document.querySelectorAll('.upload-container, .upload-container button'))
      if (upload.innerText.trim()) upload.removeAttribute('aria-label');
    for (const part of document.querySelectorAll('.thumbnail-item'))
      named(part, part.querySelector('.caption-label')?.textContent.trim());
    for (const part of document.querySelectorAll('.image-container > button'))
      named(part, part.closest('.block').querySelector('[data-testid=block-label]')?.textContent.trim() || 'Picture');
  };
  let waiting = 0;
  const soon = () => { waiting ||= requestAnimationFrame(() => { waiting = 0; mend(); }); };
  new MutationObserver(soon).observe(document.body, { childList: true, subtree: true });
  mend();
}"""

LOOKS: dict[str, Any] = {"theme": _THEME, "css": _CSS, "js": _SCRIPT}
