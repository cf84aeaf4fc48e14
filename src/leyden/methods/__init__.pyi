from .classification import Classification as Classification
from .language_modeling import LanguageModeling as LanguageModeling
from .regression import Regression as Regression
