"""The least that MONAI Label takes for an app: a threshold, a network of one weight, real tasks."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from iopfl.compat import apply_tasks

apply_tasks()

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from monai.losses import DiceLoss  # noqa: E402
from monai.transforms import EnsureChannelFirstd, LoadImaged  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType  # noqa: E402
from monailabel.tasks.scoring.dice import Dice  # noqa: E402
from monailabel.tasks.train.basic_train import BasicTrainTask  # noqa: E402

from iopfl.labels.folder import FolderDatastore  # noqa: E402
from iopfl.lib import base_app  # noqa: E402
from iopfl.lib.activelearning import RandomImage  # noqa: E402

THRESHOLD = 100


class Threshold(InferTask):
    """Labels what is bright. Request keys: `seconds` to take, `fail` to fail."""

    def __init__(self):
        super().__init__(InferType.SEGMENTATION, {"bright": 1}, 3, "threshold", {"seconds": "0"})

    def is_valid(self):
        return True

    def __call__(self, request):
        time.sleep(float(request.get("seconds", 0)))
        if request.get("fail"):
            raise ValueError(f"secret of {request['image']}")
        image = nib.load(request["image"])
        mask = (np.asarray(image.dataobj) > THRESHOLD).astype(np.uint8)
        handle, path = tempfile.mkstemp(suffix=".nii.gz")
        os.close(handle)
        nib.save(nib.Nifti1Image(mask, image.affine), path)
        return path, {"label_names": self.labels, "image_id": request.get("image_id")}


class OneWeight(BasicTrainTask):
    """MONAI Label's own trainer. Request keys: `seconds` to take first, `words` to end with."""

    def __call__(self, request, datastore):
        time.sleep(float(request.get("seconds", 0)))
        if request.get("words"):
            # Ends at once: the last line is there only for who reads to the end.
            sys.stdout.write("filler\n" * 2000 + request["words"] + "\n")
            sys.stdout.flush()
            os._exit(1)
        return super().__call__(request, datastore)

    def network(self, context):
        return torch.nn.Conv3d(1, 1, 1)

    def optimizer(self, context):
        return torch.optim.SGD(context.network.parameters(), lr=0.1)

    def loss_function(self, context):
        return DiceLoss(sigmoid=True)

    def train_pre_transforms(self, context):
        keys = ("image", "label")
        return [LoadImaged(keys), EnsureChannelFirstd(keys)]

    def train_post_transforms(self, context):
        return None

    def val_pre_transforms(self, context):
        return self.train_pre_transforms(context)

    def val_inferer(self, context):
        return self.train_inferer(context)


class MinimalApp(base_app.BaseApp, MONAILabelApp):
    """One of each task."""

    def __init__(self, app_dir, studies, conf):
        self.model_dir = Path(conf["state"]) / "model"
        super().__init__(app_dir, studies, conf, name="minimal")

    def init_datastore(self):
        return FolderDatastore(self.studies, extensions=["*.nii.gz", "*.png"])

    def init_strategies(self):
        return {"random": RandomImage()}

    def init_infers(self):
        return {"threshold": Threshold()}

    def init_trainers(self):
        options = {"max_epochs": 1, "val_split": 0.0, "dataset": "Dataset", "dataloader": "DataLoader"}
        return {"one_weight": OneWeight(str(self.model_dir), "one weight", options, amp=False)}

    def init_scoring_methods(self):
        return {"dice": Dice()}
