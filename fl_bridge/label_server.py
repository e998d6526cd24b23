"""The trainer under the name that jobs give it (`kit_policy.TRAINER`), which every site of 0.1 knows."""

from fl_bridge.label_server_trainer import LabelServerTrainer

__all__ = ["LabelServerTrainer"]
