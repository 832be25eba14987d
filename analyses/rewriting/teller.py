"""What simulators say in a batch of a run: made once a batch, for all plans."""

from collections.abc import Callable, Mapping

from jaxtyping import Int
from torch import Tensor

from analyses.rewriting.calibration import Calibration, bins
from analyses.rewriting.plans import Said
from analyses.rewriting.rewriter import Simulations
from sat_lens.coders.sites import SiteBatch


class Teller:
    """The simulated activations of a set of explanations.

    Args:
        simulations: of the stories of the run, whose places among them are a batch's rows.
        calibrations: by name.
        cut: from which a latent is called active.
    """

    def __init__(
        self, simulations: Simulations, calibrations: Mapping[str, Calibration], cut: Int[Tensor, " unit"]
    ) -> None:
        self.simulations, self.calibrations, self.cut = simulations, calibrations, cut
        self._batch: tuple[object, ...] = ()
        self._said: dict[str, Said] = {}

    def by(self, calibration: str) -> Callable[[SiteBatch], Said]:
        """What is said of a batch, calibrated so.

        Raises:
            ValueError: (when it is asked) a value is missing at a token that is to be edited.
        """

        def said(site: SiteBatch) -> Said:
            batch = (*site.rows.tolist(), site.x.shape[1])
            if batch != self._batch:
                self._batch, self._said = batch, {}
            if calibration not in self._said:
                self._said[calibration] = self._tell(site, self.calibrations[calibration])
            return self._said[calibration]

        return said

    def _tell(self, site: SiteBatch, calibration: Calibration) -> Said:
        y = self.simulations.at(site.rows.cpu(), site.x.shape[1])
        missing = y.isnan() & site.keep.cpu()[..., None]
        if missing.any():
            raise ValueError(
                f"{int(missing.sum()):,} simulated activations are missing at tokens to be rewritten; a missing one is "
                "never taken from the truth: leave such tokens out (missing=mask), or simulate again"
            )
        y = y.nan_to_num(0.0)
        return Said(calibration(y), bins(y, calibration.low, calibration.high) >= self.cut)
