"""The model that comes with the package, `composer_jax.load('demo')`.

The demo's family with two to three times its parameters, trained on an accelerator in
minutes; all five together stay under 15 million. `launch/shipped.sh` trains it.
"""
