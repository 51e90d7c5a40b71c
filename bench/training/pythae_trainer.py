"""pythae's VAE, trained by pythae's own pipeline."""

import contextlib
import importlib.util
import io
import logging
import tempfile
from typing import Any

import torch
from torch import Tensor

from bench.training.clock import Ended
from bench.training.handwritten import mlp
from bench.training.peers import images, layers, neg_elbo
from pipeline.train.run import TrainRun

MISSING = (
    "" if all(importlib.util.find_spec(name) for name in ("pythae", "imageio", "cloudpickle")) else "not installed"
)


def fit(run: TrainRun, ended: Ended) -> None:
    """Its defaults but for the sizes, batch and rate; no evaluation and no checkpoints of its own, which it can do."""
    with contextlib.redirect_stderr(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        from pythae.pipelines import TrainingPipeline
        from pythae.trainers import BaseTrainerConfig
        from pythae.trainers.training_callbacks import TrainingCallback

        model = build(run)
        weights = [*model.encoder.parameters(), *model.decoder.parameters()]  # it registers the decoder first

        class EndOfEpoch(TrainingCallback):
            def on_epoch_end(self, training_config: BaseTrainerConfig, **_: object) -> None:
                ended(lambda: neg_elbo(run, weights))

        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=run.train.epochs,
            learning_rate=run.train.learning_rate,
            per_device_train_batch_size=run.train.global_batch_size,
            optimizer_cls="Adam",
            seed=run.train.seed,
            no_cuda=True,
        )
        logging.getLogger("pythae").setLevel(logging.ERROR)
        TrainingPipeline(training_config=config, model=model)(images(run), callbacks=[EndOfEpoch()])


def build(run: TrainRun) -> Any:
    """Its VAE with layers of the same sizes."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    widths, latent_dim = layers(run)
    shape = run.open("train").spec.shape

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp(*widths, 2 * latent_dim)

        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_var = self.layers(x.flatten(1)).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp(latent_dim, *widths[::-1])

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)).unflatten(1, shape))

    class Binarised(VAE):
        """It has no binarisation of its own; of the places where it could be, this is the cheapest."""

        def forward(self, inputs: dict[str, Tensor], **rest: object) -> ModelOutput:
            return super().forward({**inputs, "data": torch.bernoulli(inputs["data"])}, **rest)

    torch.manual_seed(run.train.seed)
    config = VAEConfig(input_dim=shape, latent_dim=latent_dim, reconstruction_loss="bce")
    return Binarised(config, encoder=Encoder(), decoder=Decoder())
