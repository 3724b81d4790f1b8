"""Pictures of a comparison as SVG, drawn for a page's style sheet."""
