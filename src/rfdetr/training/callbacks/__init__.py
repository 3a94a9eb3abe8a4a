"""What happens around the training step: averaging, evaluation, keeping the best, stopping, writing
the run's files.
"""

from rfdetr.training.callbacks.averaging import DropPathCallback, RFDETREMACallback
from rfdetr.training.callbacks.grids import DatasetGridsCallback
from rfdetr.training.callbacks.limits import MemoryCallback, UndecodableCallback
from rfdetr.training.callbacks.nonfinite import NonFiniteCallback
from rfdetr.training.callbacks.pace import PaceCallback
from rfdetr.training.callbacks.resume import ResumeCallback
from rfdetr.training.callbacks.run_files import RunFilesCallback
from rfdetr.training.callbacks.selection import BestModelCallback, RFDETREarlyStopping
from rfdetr.training.callbacks.time_limit import TimeLimitCallback
from rfdetr.training.callbacks.validation import COCOEvalCallback, PredictionImagesCallback
from rfdetr.training.callbacks.views import DataViewsCallback

__all__ = ["BestModelCallback", "COCOEvalCallback", "DataViewsCallback"]
__all__ += ["DatasetGridsCallback", "DropPathCallback"]
__all__ += ["MemoryCallback", "NonFiniteCallback", "PaceCallback", "PredictionImagesCallback"]
__all__ += ["RFDETREMACallback", "TimeLimitCallback"]
__all__ += ["RFDETREarlyStopping", "ResumeCallback", "RunFilesCallback", "UndecodableCallback"]
