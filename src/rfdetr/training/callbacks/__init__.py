"""What happens around the training step: averaging, evaluation, keeping the best, stopping, writing the run's files."""

from rfdetr.training.callbacks.best_model import BestModelCallback
from rfdetr.training.callbacks.drop_path import DropPathCallback
from rfdetr.training.callbacks.early_stopping import RFDETREarlyStopping
from rfdetr.training.callbacks.ema import RFDETREMACallback
from rfdetr.training.callbacks.evaluation import COCOEvalCallback
from rfdetr.training.callbacks.files import RunFilesCallback

__all__ = [
    "BestModelCallback",
    "COCOEvalCallback",
    "DropPathCallback",
    "RFDETREMACallback",
    "RFDETREarlyStopping",
    "RunFilesCallback",
]
