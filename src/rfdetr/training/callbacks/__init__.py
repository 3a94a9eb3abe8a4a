"""What happens around the training step: averaging, evaluation, keeping the best, stopping, writing
the run's files.
"""

from rfdetr.training.callbacks.averaging import RFDETREMACallback
from rfdetr.training.callbacks.drop_path import DropPathCallback
from rfdetr.training.callbacks.early_stopping import RFDETREarlyStopping
from rfdetr.training.callbacks.nonfinite import FaultsCallback
from rfdetr.training.callbacks.resume import ContinuationCallback
from rfdetr.training.callbacks.run_files import RunFilesCallback
from rfdetr.training.callbacks.selection import BestModelCallback
from rfdetr.training.callbacks.validation import COCOEvalCallback, PredictionImagesCallback

__all__ = [
    "BestModelCallback",
    "COCOEvalCallback",
    "ContinuationCallback",
    "DropPathCallback",
    "FaultsCallback",
    "PredictionImagesCallback",
    "RFDETREMACallback",
    "RFDETREarlyStopping",
    "RunFilesCallback",
]
