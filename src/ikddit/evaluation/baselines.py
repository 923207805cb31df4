"""What a fab does without a network: the baselines every model is measured against (scikit-learn).

| name | forecast |
|---|---|
| zero | no overlay |
| persistence | the previous layer's map |
| chuck_mean | mean training map of the scanner and chuck |
| ewma | exponentially weighted mean of the maps measured before on that scanner and chuck |
| ridge_ids, ridge_logs, ridge_logs_ids | ridge regression on one-hot ids / logs / both |
| ridge_all | the same, plus the principal components of the previous map |
| gbm | ridge_all, corrected by gradient-boosted trees on the leading map coefficients |

All are fitted on train; val chooses the ridge's alpha and which coefficients boosting may touch. The ridges
and trees predict principal components of the map (`baselines.components`), not pixels: the components they
leave out are noise.

EWMA is run as run-to-run control runs it, with more information than the frozen models have: once per lot
(the mean map of the lot's wafers on that chuck), from every wafer measured before the exposure, test wafers
included, where a lot counts as measured `metrology_delay_h` after its last exposure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ikddit.console import log
from ikddit.dataset.arrow import PreparedSplit
from ikddit.evaluation.ewma import Forecasts, Rows, ewma_forecasts, masked_mean
from ikddit.evaluation.features import IdFeatures, LogFeatures, MapCodes, scanner_chuck, valid_share
from ikddit.evaluation.inputs import take
from ikddit.params import BaselineParams

NAMES = (
    "zero",
    "persistence",
    "chuck_mean",
    "ewma",
    "ridge_ids",
    "ridge_logs",
    "ridge_logs_ids",
    "ridge_all",
    "gbm",
)
BOOSTED_COMPONENTS = 24
"""Leading map coefficients that get trees; the rest of the map keeps the ridge's forecast."""
BOOSTED_LOGS = 32
"""Log channels and line counts that the trees read: those with the largest weights in ridge_all. Others are
mostly nuisance, constant over a lot, in which trees find lots by heart."""
BOOSTED_PREV_COMPONENTS = 16
"""Coefficients of the previous map that the trees read."""


@dataclass
class _Ridge:
    model: Any
    alpha: float


class Baselines:
    """The baselines of one data set; what they share (components, features, fits) is computed once."""

    def __init__(
        self, train: PreparedSplit, val: PreparedSplit, settings: BaselineParams, seed: int = 0
    ) -> None:
        """Hold the splits; fits happen when a forecast asks for them.

        Args:
            train: fitted on.
            val: chooses alpha; without wafers, leave-one-out on train does.
            settings: the `baselines` section of params.yaml.
            seed: of the randomised PCA and the trees.
        """
        self.train, self.val, self.settings, self.seed = train, val, settings, seed
        self._ridges: dict[str, _Ridge] = {}
        self._blocks: dict[tuple[str, bool], np.ndarray] = {}
        self._codes: MapCodes | None = None
        self._prev_codes: MapCodes | None = None
        self._ids = IdFeatures(train)
        self._logs = LogFeatures.of(train)
        self._trees: list[Any] | None = None

    def unavailable(self) -> dict[str, str]:
        """Baselines that this data set cannot have, with the reason."""
        train, out = self.train, dict[str, str]()

        def without(names: Sequence[str], reason: str) -> None:
            out.update(dict.fromkeys(names, reason))

        if not train.ids.any():
            without(["ridge_ids", "ridge_logs_ids"], "the data have no ids")
        if train.log_missing.all() and not train.line_templates.any():
            without(["ridge_logs", "ridge_logs_ids"], "the data have no logs")
        if not scanner_chuck(train).any():
            without(["chuck_mean", "ewma"], "the data have no scanner and chuck ids")
        elif train.table.column("exposed_at").null_count == len(train):
            without(["ewma"], "the exposures have no time")
        if valid_share(train.prev_valid) == 0:
            without(["persistence", "ridge_all", "gbm"], "the data have no previous maps")
        if valid_share(train.valid) == 0:
            without(NAMES[2:], "the data have no measured maps to fit")
        return out

    def predict(
        self, name: str, split: PreparedSplit, rows: Rows, history: Sequence[PreparedSplit] = ()
    ) -> Forecasts:
        """Forecast maps of some wafers of a split, nm, on all pixels.

        Args:
            name: one of `NAMES`, not `unavailable`.
            split: train, val, test ...
            rows: which wafers of it.
            history: splits whose measured maps `ewma` may use, each wafer only after its time.

        Raises:
            ValueError: unknown name, or one that this data set cannot have.
        """
        if name not in NAMES:
            raise ValueError(f"unknown baseline {name!r}, known: {', '.join(NAMES)}")
        if name in (missing := self.unavailable()):
            raise ValueError(f"baseline {name} is not possible: {missing[name]}")
        if name == "zero":
            return np.zeros((len(rows), *split.map.shape[1:]), np.float32)
        if name == "persistence":
            return np.where(split.prev_valid[rows, None] != 0, split.prev_map[rows], 0).astype(np.float32)
        if name == "chuck_mean":
            return self._chuck_mean(split, rows)
        if name == "ewma":
            return ewma_forecasts(
                split,
                rows,
                history,
                start=self.codes.mean_map,
                weight=self.settings.ewma_lambda,
                delay_h=self.settings.metrology_delay_h,
            )
        return self.codes.decode(self._predict_codes(name, split, rows))

    # Group means -----------------------------------------------------------------------------------------

    def _chuck_mean(self, split: PreparedSplit, rows: Rows) -> Forecasts:
        keys = scanner_chuck(self.train)
        wanted = scanner_chuck(split)[rows]
        out = np.tile(self.codes.mean_map, (len(rows), 1, 1, 1))
        for key in np.unique(wanted, axis=0):
            members = np.flatnonzero((keys == key).all(axis=1))
            if len(members):
                mean, known = masked_mean(self.train, members)
                out[(wanted == key).all(axis=1)] = np.where(known, mean, self.codes.mean_map)
        return out

    # Regression on coefficients --------------------------------------------------------------------------

    @property
    def codes(self) -> MapCodes:
        """Principal components of the training maps."""
        if self._codes is None:
            self._codes = MapCodes(self.train.map, self.train.valid, self.settings.components, self.seed)
        return self._codes

    @property
    def prev_codes(self) -> MapCodes:
        """Principal components of the previous maps of train."""
        if self._prev_codes is None:
            maps, valid = self.train.prev_map, self.train.prev_valid
            self._prev_codes = MapCodes(maps, valid, self.settings.components, self.seed)
        return self._prev_codes

    def alpha(self, name: str) -> float | None:
        """Penalty chosen for a ridge that has been fitted."""
        return self._ridges[name].alpha if name in self._ridges else None

    def _block(self, kind: str, split: PreparedSplit) -> np.ndarray:
        """A block of features, kept for train and val, which several fits read."""
        if split is not self.train and split is not self.val:
            return self._features(kind, split)
        key = kind, split is self.train
        if key not in self._blocks:
            self._blocks[key] = self._features(kind, split)
        return self._blocks[key]

    def _features(self, kind: str, split: PreparedSplit) -> np.ndarray:
        if kind == "ids":
            return self._ids(split)
        if kind == "logs":
            return self._logs(split)
        if kind == "tree_logs":
            return self._logs.for_trees(split)[:, self._tree_columns()]
        if kind == "prev":
            return self.prev_codes.encode(split.prev_map, split.prev_valid)
        return self.codes.encode(split.map, split.valid)  # "target"

    def _inputs(self, name: str, split: PreparedSplit) -> np.ndarray:
        kinds = {"ridge_ids": ["ids"], "ridge_logs": ["logs"], "ridge_logs_ids": ["logs", "ids"]}
        return np.hstack([self._block(kind, split) for kind in kinds.get(name, ["logs", "ids", "prev"])])

    def _ridge(self, name: str) -> _Ridge:
        from sklearn.feature_selection import VarianceThreshold
        from sklearn.linear_model import Ridge, RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if name in self._ridges:
            return self._ridges[name]
        alphas = self.settings.ridge_alphas
        prepare = make_pipeline(VarianceThreshold(), StandardScaler())
        inputs = prepare.fit_transform(self._inputs(name, self.train))
        target = self._block("target", self.train)
        if len(self.val):
            val_inputs = prepare.transform(self._inputs(name, self.val))
            val_target = self._block("target", self.val)
            models = [Ridge(alpha).fit(inputs, target) for alpha in alphas]
            errors = [float(((m.predict(val_inputs) - val_target) ** 2).mean()) for m in models]
            best = models[int(np.argmin(errors))]
            alpha = alphas[int(np.argmin(errors))]
        else:
            best = RidgeCV(alphas).fit(inputs, target)
            alpha = float(best.alpha_)
        self._ridges[name] = _Ridge(make_pipeline(prepare, best), alpha)
        log.info("baselines: %s: %d features, alpha %g", name, inputs.shape[1], alpha)
        return self._ridges[name]

    def _predict_codes(self, name: str, split: PreparedSplit, rows: Rows) -> np.ndarray:
        part = take(split, rows)
        linear = "ridge_all" if name == "gbm" else name
        out = np.asarray(self._ridge(linear).model.predict(self._inputs(linear, part)), np.float32)
        if name == "gbm":
            inputs = self._tree_inputs(part)
            for i, tree in enumerate(self._boost()):
                if tree is not None:
                    out[:, i] += tree.predict(inputs)
        return out

    # Boosting --------------------------------------------------------------------------------------------

    def _tree_columns(self) -> np.ndarray:
        """Columns of `LogFeatures.for_trees` with the largest weights in ridge_all (of standardised features)."""
        model = self._ridge("ridge_all").model
        kept = model[0][0].get_support()  # features that vary in train
        weight = np.zeros(len(kept))
        weight[kept] = np.linalg.norm(np.atleast_2d(model[-1].coef_), axis=0)
        channels = self.train.log_features.shape[1]
        counts = self._logs.templates
        # ridge_all reads channels, missing flags, counts, ...; trees read channels, counts.
        weight = np.concatenate([weight[:channels], weight[2 * channels : 2 * channels + counts]])
        return np.sort(np.argsort(-weight, kind="stable")[:BOOSTED_LOGS])

    def _tree_inputs(self, split: PreparedSplit) -> np.ndarray:
        """Ids as categories first, then the main logs and the leading coefficients of the previous map."""
        prev = self._block("prev", split)[:, :BOOSTED_PREV_COMPONENTS]
        return np.hstack([split.ids.astype(np.float32), self._block("tree_logs", split), prev])

    def _boost(self) -> list[Any]:
        """Trees for the residual of ridge_all in the leading coefficients; None where val got worse."""
        from sklearn.ensemble import HistGradientBoostingRegressor
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        if self._trees is not None:
            return self._trees
        ridge = self._ridge("ridge_all").model

        def residual(split: PreparedSplit) -> np.ndarray:
            linear = ridge.predict(self._inputs("ridge_all", split))
            return np.asarray(self._block("target", split) - linear)

        left, inputs = residual(self.train), self._tree_inputs(self.train)
        fields = self.train.ids.shape[1]
        # scikit-learn's trees take at most 255 categories; an id field with more stays a number.
        categorical = np.arange(inputs.shape[1]) < fields
        categorical[:fields] &= self.train.ids.max(axis=0) < 255
        self._trees = []
        # One thread: the barriers of many cost more than they give on so few rows, tenfold on busy cores.
        with threadpool_limits(1, "openmp"):
            for i in range(min(BOOSTED_COMPONENTS, left.shape[1])):
                tree = HistGradientBoostingRegressor(
                    max_iter=100,
                    learning_rate=0.08,
                    max_leaf_nodes=15,
                    min_samples_leaf=50,  # two lots' worth
                    l2_regularization=10.0,
                    categorical_features=categorical,
                    early_stopping=False,
                    random_state=self.seed,
                ).fit(inputs, left[:, i])
                self._trees.append(tree)
        if len(self.val):
            before, val_inputs = residual(self.val), self._tree_inputs(self.val)
            for i, tree in enumerate(self._trees):
                after = before[:, i] - tree.predict(val_inputs)
                if float((after**2).sum()) >= float((before[:, i] ** 2).sum()):
                    self._trees[i] = None
        return self._trees
