"""What the model families are called, in the report and on model cards."""

KINDS = {
    "autoencoder": "Autoencoder",
    "vae": "Variational autoencoder",
    "iwae": "Importance-weighted autoencoder",
    "vqvae": "Vector-quantised autoencoder",
    "vqvae2": "Vector-quantised autoencoder of several levels",
    "categorical": "Autoencoder with categorical latents",
    "hierarchical": "Deep hierarchical variational autoencoder",
}
