"""The algorithm: task, networks, training, personalization, bank, routing, adaptation, evaluation."""
