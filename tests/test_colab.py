from lib import colab, profile


def test_only_what_is_lacking_is_installed_and_never_torch_or_numpy(monkeypatch):
    installed = {"torch": "2.6.0", "numpy": "1.26.4", "pandas": "1.0.0", "tqdm": "4.67.1"}

    def version(name):
        if name not in installed:
            raise colab.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(colab.importlib.metadata, "version", version)
    text = "# ranges\ntorch>=2.7\nnumpy>=2\npandas>=2.2,<3.2  # frames\ntqdm>=4.67,<5\npeft>=0.21\n-e .\n"
    assert colab.lacking(text) == ["pandas>=2.2,<3.2", "peft>=0.21"]


def test_the_projects_own_requirements_parse_and_are_met_here():
    assert colab.lacking((profile.ROOT / "requirements.txt").read_text()) == []
