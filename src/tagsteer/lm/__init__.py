"""Language models: loading, chat template, reading and editing the residual stream. Knows no SAE, no label."""
