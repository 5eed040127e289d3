"""What a run fixes when it claims OUTPUT."""

from collections.abc import Iterator

from pipeline.config import JobConfig
from pipeline.encoding import Precision
from pipeline.errors import UsageError
from pipeline.messages import Calibration


def check_precision(
    config: JobConfig, precision: Precision, calibration: Calibration | None, *, needed: bool
) -> Iterator[str]:
    """Refuse a precision that loses tokens; yields what was found, of the decode mode too, in lines for the user.

    Args:
        config: of the job.
        precision: that was chosen.
        calibration: None if no image could be read.
        needed: there are shards to tokenize.

    Raises:
        UsageError: the precision keeps too few of the tokens of `exact`, or nobody knows how many.
    """
    floor = config.model.min_agreement
    if calibration is None:
        if needed and precision is not Precision.EXACT:
            raise UsageError(
                f"the agreement of precision {precision} with {Precision.EXACT} could not be measured: no image "
                "could be read; use model.precision=exact, or mend the first shards"
            )
        return
    if config.image.decode != "exact":
        kept = f"{calibration.decode_agreement:.2%} of the tokens of image.decode=exact"
        yield f"image.decode={config.image.decode} keeps {kept}, on {calibration.images} images"
    if calibration.chosen.agreement < floor:
        raise UsageError(
            f"precision {precision} keeps only {calibration.chosen.agreement:.2%} of the tokens of precision "
            f"{Precision.EXACT} (model.min_agreement is {floor:.2%}); choose a finer precision, or lower the floor"
        )
    if len(calibration.trials) > 1:
        tried = "; ".join(map(str, calibration.trials))
        yield f"precision {precision} (model.min_agreement is {floor:.2%}): {tried}"
