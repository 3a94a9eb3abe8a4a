"""What happens around the training step: averaging, evaluation, keeping the best, stopping, writing the run's files."""

from rfdetr.training.callbacks.best_model import BestModelCallback
from rfdetr.training.callbacks.continuation import ContinuationCallback
from rfdetr.training.callbacks.drop_path import DropPathCallback
from rfdetr.training.callbacks.early_stopping import RFDETREarlyStopping
from rfdetr.training.callbacks.ema import RFDETREMACallback
from rfdetr.training.callbacks.evaluation import COCOEvalCallback
from rfdetr.training.callbacks.faults import FaultsCallback
from rfdetr.training.callbacks.files import RunFilesCallback
from rfdetr.training.callbacks.images import PredictionImagesCallback

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
