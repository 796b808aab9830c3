"""``python -m ddpm_hf train-features``: a classifier of a data set's own, for the features that scores compare."""

from pathlib import Path

from ddpm_hf.commands.outputs import refuse_unwritable_folder
from ddpm_hf.errors import UserError

SMALLEST_SIZE = 8  # pixels: the classifier halves them twice


def add_parser(commands):
    parser = commands.add_parser(
        "train-features",
        help="train the classifier that scores compare features of",
        description="Train a small classifier on labelled images; its features are for evaluate --features.",
    )
    parser.add_argument("--dataset", required=True, help="labelled images, as for train.py")
    parser.add_argument("--sample-size", type=int, default=32, help="sample_size of the models to score (default 32)")
    parser.add_argument("--on-bad-image", choices=("error", "skip"), default="error", help="skip unreadable images")
    parser.add_argument("--label-names", help="class names, where the data set has none, separated by commas")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the images (default 8)")
    parser.add_argument("--flip", action="store_true", help="mirror images at random while training")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the images (default 0)")
    parser.add_argument("--output", required=True, help="folder of the classifier")
    parser.set_defaults(run=run)


def run(arguments):
    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not _is_classifier(output))):
        raise UserError(f"--output {output} exists and is not a classifier; choose another folder.")
    refuse_unwritable_folder(output)
    if arguments.epochs < 1 or arguments.sample_size < SMALLEST_SIZE:
        raise UserError(f"--epochs must be at least 1, --sample-size at least {SMALLEST_SIZE}.")
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed must lie in [0, {2**32 - 1}], got {arguments.seed}.")

    from ddpm_hf.classifier import accuracy, save_classifier, train_classifier
    from ddpm_hf.data import Source, open_data

    names = arguments.label_names and [name.strip() for name in arguments.label_names.split(",")]
    source = Source(arguments.dataset, label_names=names)
    train, test = open_data(
        [source], sample_size=arguments.sample_size, on_bad_image=arguments.on_bad_image, validation_images=10_000
    )
    if train.labels is None or train.num_classes < 2:
        raise UserError(f"data set {arguments.dataset!r} has no classes to tell apart; labelled images would be right.")

    def tell(epoch: int, network):
        if test is not None:
            print(f"epoch {epoch}: accuracy {accuracy(network, test):.4f} on {len(test):,} unseen images")

    network = train_classifier(train, epochs=arguments.epochs, seed=arguments.seed, flip=arguments.flip, on_epoch=tell)
    megabytes = save_classifier(output, network) / 1e6
    print(f"wrote {output}: {megabytes:.2f} MB in half precision")
    if test is not None:
        print(f"accuracy {accuracy(network, test):.4f} as written")


def _is_classifier(folder: Path) -> bool:
    return (folder / "config.json").is_file() and "ImageClassifier" in (folder / "config.json").read_text()
