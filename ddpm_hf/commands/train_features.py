"""``python -m ddpm_hf train-features``: a classifier of a data set's own, for the features that scores compare."""

from pathlib import Path

from ddpm_hf.commands.options import add_seed, refuse_unwritable, whole_number
from ddpm_hf.errors import UserError, echo
from ddpm_hf.ownership import CLASSIFIER, may_replace

SMALLEST_SIZE = 8  # pixels: the classifier halves them twice


def add_parser(commands):
    parser = commands.add_parser(
        "train-features",
        help="train the classifier that scores compare features of",
        description="Train a small classifier on labelled images; its features are for evaluate --features.",
    )
    parser.add_argument("--dataset", required=True, help="labelled images, as for train.py")
    parser.add_argument(
        "--sample-size",
        type=whole_number(SMALLEST_SIZE),
        default=32,
        help="sample_size of the models to score (default 32)",
    )
    parser.add_argument(
        "--resize",
        choices=("auto", "pad", "crop", "area"),
        default="auto",
        help="resize of these models (default auto)",
    )
    parser.add_argument("--on-bad-image", choices=("error", "skip"), default="error", help="skip unreadable images")
    parser.add_argument("--label-names", help="class names, where the data set has none, separated by commas")
    parser.add_argument("--epochs", type=whole_number(1), default=8, help="passes over the images (default 8)")
    parser.add_argument("--flip", action="store_true", help="mirror images at random while training")
    add_seed(parser, "of the weights and the order of the images")
    parser.add_argument("--output", required=True, help="folder of the classifier")
    parser.set_defaults(run=run)


def run(arguments):
    output = Path(arguments.output)
    if not may_replace(output, CLASSIFIER):
        raise UserError(f"--output {output} exists and is not a classifier; choose another folder.")
    refuse_unwritable(output)

    from ddpm_hf.data import Source, open_data
    from ddpm_hf.evaluation.classifier import accuracy, save_classifier, train_classifier

    names = arguments.label_names and [name.strip() for name in arguments.label_names.split(",")]
    source = Source(arguments.dataset, label_names=names)
    train, test = open_data(
        [source],
        sample_size=arguments.sample_size,
        resize=arguments.resize,
        on_bad_image=arguments.on_bad_image,
        validation_images=10_000,
    )
    if train.left_out:
        echo(f"left out: {', '.join(train.left_out)}.")
    for note in train.notes:
        echo(f"note: {note}.")
    if train.labels is None or train.num_classes < 2:
        raise UserError(f"data set {arguments.dataset!r} has no classes; it needs labelled images.")

    def tell(epoch: int, network):
        if test is not None:
            echo(f"epoch {epoch}: accuracy {accuracy(network, test):.4f} on {len(test):,} unseen images")

    network = train_classifier(train, epochs=arguments.epochs, seed=arguments.seed, flip=arguments.flip, on_epoch=tell)
    megabytes = save_classifier(output, network) / 1e6
    echo(f"wrote {output}: {megabytes:.2f} MB in half precision")
    if test is not None:
        echo(f"accuracy {accuracy(network, test):.4f} as written")
