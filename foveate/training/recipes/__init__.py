"""The recipe of a training run: one frozen dataclass, recipes by name, and YAML files read strictly."""
