import pytest
from tiny_encoder import coloured_squares, tiny_encoder, words_pipeline


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory):
    """Tokenizer and encoder of width 12."""
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """A folder of coloured squares with captions."""
    return coloured_squares(tmp_path_factory.mktemp("pictures") / "squares")


@pytest.fixture
def pipeline(encoder_folder):
    """A pipeline that reads words; its network's weights are random, those that start at zero too."""
    return words_pipeline(encoder_folder)
