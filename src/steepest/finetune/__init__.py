"""Fine-tune a transformer with LoRA or another adapter, under a chosen optimiser and geometry, and report what came of
it.

The command is `steepest finetune`; `steepest.finetune.job.finetune` is the same as a function. Needs
`pip install 'steepest[cli]'`.
"""
