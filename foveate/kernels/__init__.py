"""Operations, one file each: the plain definition beside the fused ones. Nothing here is an nn.Module."""
