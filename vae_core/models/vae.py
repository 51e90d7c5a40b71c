"""Variational autoencoder with a Gaussian posterior, conditional where its configuration names a condition.

Source: Kingma & Welling, arXiv:1312.6114; conditional form with a learned prior: Sohn et al., NeurIPS 2015.
"""

from vae_core.models.base import Inputs, repeated
from vae_core.models.gaussian import GaussianModel, GaussianOutput


class VAE(GaussianModel):
    """Trained on the ELBO, or on one of its variants in `VAEConfig`."""

    def forward(self, inputs: Inputs) -> GaussianOutput:
        """Encode, draw `samples` latents, decode each."""
        c = inputs.condition
        posterior = self.encode(inputs.x, c)
        z = posterior.draw(inputs.draws["posterior"].movedim(1, 0))
        pixels = self.decode(z.flatten(0, 1), repeated(c, len(z)))
        return GaussianOutput(posterior, self.prior(c), z, pixels)
