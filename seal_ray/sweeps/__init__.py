"""Many runs from one YAML file: their plan, their order, their results."""
