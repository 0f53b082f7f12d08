"""Kinds of task: what is predicted, and how a prediction is judged. Importing this package, or its metrics, loads no torch."""
