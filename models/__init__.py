"""Networks.

        image_size = config["transformation_kwargs"]["crop_size"]
    backbone = BACKBONES[name](image_size)
    try:
        dim = feature_width(backbone, image_size)
    except RuntimeError as error:
        raise UserError(
            f"backbone {name}: cannot take images of {image_size} pixels ({str(error).splitlines()[0]}); set "
            "another backbone or crop size"
        ) from None

    if config["setup"] in ("simclr", "moco"):
        return ContrastiveModel(backbone, dim, **config["model_kwargs"])
    if config["setup"] in ("scan", "selflabel"):
        return ClusteringModel(backbone, dim, config["num_classes"], config["num_heads"])
    raise UserError(f"setup: unknown step {config['setup']!r}, known: simclr, moco, scan, selflabel")


def feature_width(backbone, image_size):
    """D of a backbone's features (B, D).

    A copy without numbers is asked, in eval mode: no random number is drawn, no statistic changes, and large
    images cost nothing.
    """
    on_meta = copy.deepcopy(backbone).to("meta").eval()
    return on_meta(torch.empty(1, 3, image_size, image_size, device="meta")).size(1)
