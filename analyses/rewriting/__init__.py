"""Rewriting part of a model in words: MLP latents replaced by what their explanations predict, and what that costs.

| file | idea |
| --- | --- |
| `arguments`, `steps`, `run_folder` | the command, its steps, and the folder that they leave |
| `foreseen` | what a command line asks for in vain, told at once |
| `setting` | model, coder, latents, and stories dealt to four splits |
| `explaining`, `shortening`, `latent_subject` | explanations of latents, whole and of at most so many bits |
| `rewriter` | explanations with what simulates them |
| `detection`, `scoring`, `intervention` | how well they predict latents and their effects, with floors |
| `calibration` | simulated activations made to fit true ones |
| `plans`, `baselines` | what is put in the place of the true latents |
| `loss` | what the model then loses |
| `faults`, `published`, `method_page` | the published method: what was at fault, what it gave, what is done here |
| `latents`, `latent_page`, `figures`, `report_part` | what is shown |
"""
