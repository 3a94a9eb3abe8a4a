"""The network and nothing else, from a normalised image to detections.

`detector` is the whole: encoder -> projector -> proposals -> decoder -> heads (-> segmentation);
`postprocess` comes after it.

Words (query group, proposal, reference box, ...) are explained in docs/glossary.md.
Letters of all shapes in `rfdetr.models` and `rfdetr.losses` (an axis without a letter is a word):

    B     images of a batch
    H W   rows, columns of the input image and of its targets' masks, pixels
    h w   rows, columns of a feature map or of the masks predicted from it
    N     tokens of a sequence: of one attention window, of all cells of all levels
    D     width of the encoder's tokens
    C     width of a query, channels of a level (`hidden_dim`)
    L     decoder layers
    G Q   query groups, queries of a group; GQ: all queries, one group after another
    k     proposals of a group: Q, or all cells where there are fewer
    K     logits of a query: one more than there are classes
    P     sampling points: of a head on a level, or of a mask
    T     targets, the labelled objects of one image
    S     sets of predictions that the loss judges: one of each decoder layer, then the proposals
    A     candidates of an image for its targets: the queries of all S sets, one set after another
    M     matched pairs of a candidate and a target
"""

from typing import TYPE_CHECKING, Any

from rfdetr.moved import missing

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise missing(__name__, name)
