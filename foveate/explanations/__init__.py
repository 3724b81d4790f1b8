"""What a network looks at: one file per method, each (model, images) -> maps; one picture of them."""
